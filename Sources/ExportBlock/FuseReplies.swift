internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Places for the requests of the kernel that are under way: each keeps the reply that is made for
// it until the kernel has taken it.
//
// Invariants
// - A place is taken from the moment a request is read until its reply has been written.
// - Nothing here allocates after start.

/// The reply places of one session.
final class FuseReplies {
    /// Requests under way at most: those in the background and a few that are not.
    static let count = 192
    private static let placeByteCount = 512
    /// Bytes of room behind the header.
    static let bodyByteCountMax = placeByteCount - 16

    private let memory: UnsafeMutableRawPointer
    private let vectors: UnsafeMutablePointer<iovec>
    private let leases: UnsafeMutablePointer<BufferLease?>
    private let freePlaces: UnsafeMutablePointer<UInt32>
    private(set) var freeCount = FuseReplies.count

    init() {
        memory = .allocate(byteCount: Self.count * Self.placeByteCount, alignment: 64)
        vectors = .allocate(capacity: Self.count * 2)
        vectors.initialize(repeating: iovec(), count: Self.count * 2)
        leases = .allocate(capacity: Self.count)
        leases.initialize(repeating: nil, count: Self.count)
        freePlaces = .allocate(capacity: Self.count)
        for index in 0..<Self.count { freePlaces[index] = UInt32(Self.count - 1 - index) }
    }

    deinit {
        memory.deallocate()
        vectors.deallocate()
        leases.deallocate()
        freePlaces.deallocate()
    }

    /// A place for the request `unique`. There must be a free one.
    func take(unique: UInt64) -> UInt32 {
        precondition(freeCount > 0, "a request is read without a place for its reply")
        freeCount -= 1
        let place = freePlaces[freeCount]
        header(place).pointee = fuse_out_header(len: 0, error: 0, unique: unique)
        return place
    }

    /// Gives a place back; it holds no buffer any more.
    func release(_ place: UInt32) {
        precondition(freeCount < Self.count, "a reply place is given back twice")
        precondition(leases[Int(place)] == nil, "a reply place is given back with its buffer")
        freePlaces[freeCount] = place
        freeCount += 1
    }

    /// The buffer of the request.
    subscript(lease place: UInt32) -> BufferLease? {
        get { leases[Int(place)] }
        set { leases[Int(place)] = newValue }
    }

    private func header(_ place: UInt32) -> UnsafeMutablePointer<fuse_out_header> {
        // SAFETY: each place begins with a header, which is trivial and written before it is read.
        (memory + Int(place) * Self.placeByteCount)
            .assumingMemoryBound(to: fuse_out_header.self)
    }

    /// Room for a body, and for what must be kept until there is one.
    func body(_ place: UInt32) -> UnsafeMutableRawPointer {
        memory + Int(place) * Self.placeByteCount + Fuse.outHeaderByteCount
    }

    /// Completes a reply: its body lies in the place, or at `data`. Returns the vectors to write.
    func compose(
        _ place: UInt32, errnoValue: Int32, bodyByteCount: Int, data: UnsafeMutableRawPointer?
    ) -> (vectors: UnsafePointer<iovec>, count: Int) {
        precondition(
            data != nil || bodyByteCount <= Self.bodyByteCountMax, "a reply fits its place")
        let header = header(place)
        header.pointee.len = UInt32(Fuse.outHeaderByteCount + bodyByteCount)
        header.pointee.error = -errnoValue
        let own = vectors + Int(place) * 2
        own[0] = iovec(iov_base: header, iov_len: Fuse.outHeaderByteCount)
        guard let data else {
            own[0].iov_len += bodyByteCount
            return (UnsafePointer(own), 1)
        }
        own[1] = iovec(iov_base: data, iov_len: bodyByteCount)
        return (UnsafePointer(own), 2)
    }
}
