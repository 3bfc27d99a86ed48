public import BlockModel
public import CLinux
package import Origins
public import RingIO

// The one way to an origin's disk: requests, copies for snapshots and image reads take it, and nobody
// knows what lies behind it. `DescriptorAccess` is the one of files and block devices; an origin of
// another kind is another subclass.
//
// Invariants
// - An operation is over when its result was returned, or else when it was given to `completed` of
//   the user, once, by the tag and token that came with it. Memory that it names stays the user's
//   and untouched until then.
// - A question (`status`, `findHole`, `checkPresence`) is answered by the method of `OriginUser`
//   that its documentation names, perhaps before it returns.

/// Who uses an origin's disk: it gets the completions of its operations, and answers.
open class OriginUser: RingHandler {
    /// `status` found `count` extents, or failed.
    open func statusFound(token: UInt32, count: Int, fault: Fault?) {
        preconditionFailure("who asks for block status takes the answer")
    }

    /// `findHole` found what the range begins with; `isCertain`: the origin is one whose answers
    /// can be relied on.
    open func holeFound(token: UInt32, isHole: Bool, length: UInt64, isCertain: Bool) {
        preconditionFailure("who asks for holes takes the answer")
    }

    /// `checkPresence` found that the origin is gone, with this fault, or is there.
    open func presenceChecked(_ fault: Fault?) {
        preconditionFailure("who asks for the origin takes the answer")
    }
}

/// How an origin makes bytes read as zeroes without being given them.
public enum OriginZeroing: Sendable {
    /// They become a hole.
    case hole
    /// They stay allocated.
    case allocated
}

/// The disk of one origin on its loop; see the head of this file.
///
/// Results are those of the system calls: bytes done, at least 0, or a negative errno value. Offsets
/// and lengths of reads and writes are multiples of `facts.offsetAlignment`. Nil: the operation is
/// under way, and its result comes to `completed` of the user.
open class OriginAccess {
    /// What was measured of the origin when it was opened.
    package final let facts: OriginFacts
    /// A write with `isStable` is on stable storage when it is done; else `synchronize` has to
    /// follow.
    package final let writesStably: Bool

    package init(facts: OriginFacts, writesStably: Bool) {
        self.facts = facts
        self.writesStably = writesStably
    }

    /// Reads into memory. `work`: bytes that the loop would have to work through if it did this at
    /// once, what follows the read included; `Int.max`: never at once.
    open func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, into memory: UnsafeMutableRawPointer,
        byteCount: Int, offset: UInt64, work: Int
    ) -> Int32? {
        preconditionFailure("an origin can be read")
    }

    /// The same into several pieces of memory, one after the other.
    open func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, vectors: UnsafePointer<iovec>, count: Int,
        offset: UInt64, work: Int
    ) -> Int32? {
        preconditionFailure("an origin can be read")
    }

    /// Writes. `isStable`: to stable storage, where `writesStably`. `work` as of a read.
    open func write(
        _ user: OriginUser, tag: UInt8, token: UInt32, from memory: UnsafeRawPointer,
        byteCount: Int, offset: UInt64, isStable: Bool, work: Int
    ) -> Int32? {
        preconditionFailure("an origin can be written")
    }

    /// Makes a range read as zeroes; the result is 0. EOPNOTSUPP and ENOSYS: it cannot do so in this
    /// way.
    open func zero(
        _ user: OriginUser, tag: UInt8, token: UInt32, _ range: ByteRange, _ kind: OriginZeroing
    ) -> Int32? {
        preconditionFailure("an origin can be zeroed, or says that it cannot")
    }

    /// Everything that was written is on stable storage when this is done; the result is 0.
    open func synchronize(_ user: OriginUser, tag: UInt8, token: UInt32) -> Int32? {
        preconditionFailure("an origin can be synchronised")
    }

    // MARK: Questions

    /// Describes a range as maximal runs of data and holes in `output`, as far as there is room;
    /// `statusFound` follows. One at a time.
    open func status(
        _ user: OriginUser, token: UInt32, _ range: ByteRange,
        into output: UnsafeMutableBufferPointer<StatusExtent>
    ) {
        preconditionFailure("an origin says how it lies")
    }

    /// Finds out whether the origin has a hole where `range` begins, and how far it reaches;
    /// `holeFound` follows.
    open func findHole(_ user: OriginUser, token: UInt32, _ range: ByteRange) {
        preconditionFailure("an origin says how it lies")
    }

    /// Finds out whether the origin is still there; `presenceChecked` follows. One at a time. False
    /// when that cannot be asked now.
    open func checkPresence(_ user: OriginUser) -> Bool {
        preconditionFailure("an origin says whether it is there")
    }
}
