internal import BlockModel

// Which disk a copy lies on, and whether somebody else wrote to it. A path tells nothing: another
// disk gets it after the next plug or reboot.
//
// Three things tell, the surest first: the times of the file under a loop device; counters of what
// was written, as long as the machine runs and the disk stays plugged in; checksums of parts of the
// disk, which is what is left after a reboot.

/// A block device as a record describes it; see the head of this file.
package struct DiskState: Codable, Equatable, Sendable {
    /// What the disk calls itself; empty when it has no lasting name.
    package var identity: String
    /// The run of the machine in which it was seen.
    package var boot: String
    /// The kernel's number of it in that run; 0 when there is none.
    package var sequence: UInt64
    /// Sectors written and discarded since it appeared; nil when that is not counted.
    package var touchedSectors: UInt64?
    /// A partition: sectors touched on its disk outside all partitions.
    package var besideSectors: UInt64?
    /// A loop device: the file under it.
    package var backing: Backing?
    /// An RBD image: the number of the snapshot that it equals, or that it is on its way from.
    package var version: UInt64?

    /// How the identity of an RBD image begins. The size is not part of it.
    package static let rbdPrefix = "rbd "
    /// How the identity of an NBD server's export begins.
    package static let nbdPrefix = "nbd "

    /// The file under a loop device, as it stood.
    package struct Backing: Codable, Equatable, Sendable {
        package var size: UInt64
        package var modifiedNanoseconds: Int64
        package var changedNanoseconds: Int64

        package init(size: UInt64, modifiedNanoseconds: Int64, changedNanoseconds: Int64) {
            self.size = size
            self.modifiedNanoseconds = modifiedNanoseconds
            self.changedNanoseconds = changedNanoseconds
        }
    }

    package init(
        identity: String, boot: String, sequence: UInt64, touchedSectors: UInt64? = nil,
        besideSectors: UInt64? = nil, backing: Backing? = nil
    ) {
        self.identity = identity
        self.boot = boot
        self.sequence = sequence
        self.touchedSectors = touchedSectors
        self.besideSectors = besideSectors
        self.backing = backing
    }

    /// What can be said of a disk that is seen again.
    package enum Verdict: Equatable, Sendable {
        /// It is another disk, or nothing says that it is the same one.
        case another
        case written
        case unwritten
        /// It is the same one; only its contents can tell more.
        case unknown
    }

    /// Compares the disk with what it was when a record was made.
    package func verdict(since former: DiskState) -> Verdict {
        let isSameRun = boot == former.boot && sequence == former.sequence && sequence != 0
        guard identity == former.identity, !identity.isEmpty || isSameRun else { return .another }
        if backing != nil || former.backing != nil {
            return backing == former.backing ? .unwritten : .written
        }
        guard isSameRun, let touchedSectors, let before = former.touchedSectors else {
            return .unknown
        }
        return touchedSectors == before && besideSectors == former.besideSectors
            ? .unwritten : .written
    }

    private var isRemote: Bool {
        identity.hasPrefix(Self.rbdPrefix) || identity.hasPrefix(Self.nbdPrefix)
    }

    /// The name under which the record of this disk is kept: letters, digits and hyphens.
    package func recordName(size: UInt64) -> String {
        let key =
            identity.isEmpty
            ? "boot \(boot) disk \(sequence)"
            : isRemote ? identity : "\(identity) of \(size) bytes"
        // FNV-1a, twice: a name, no proof. The record itself holds the identity.
        func hash(from start: UInt64) -> String {
            let value = key.utf8.reduce(start) { ($0 ^ UInt64($1)) &* 0x100_0000_01B3 }
            let digits = String(value, radix: 16)
            return String(repeating: "0", count: 16 - digits.count) + digits
        }
        return hash(from: 0xCBF2_9CE4_8422_2325) + hash(from: 0x9E37_79B9)
    }
}
