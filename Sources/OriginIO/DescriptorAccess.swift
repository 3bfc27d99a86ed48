package import BlockModel
package import CLinux
internal import Glibc
package import Origins
package import RingIO

/// The disk of an origin that has a descriptor: a file or block device.
///
/// Of tmpfs, where nothing blocks, small operations are done at once; all others go through the
/// ring. Questions may read the filesystem's metadata from the disk, so they go to the blocking pool.
package final class DescriptorAccess: OriginAccess {
    let loop: EventLoop
    private let blocking: BlockingPool
    let descriptor: Int32
    private let isInline: Bool
    private var scan: HoleScan?
    private var presence: PresenceCheck?
    /// Searches for holes that nobody uses now.
    private var freeSearches: [HoleSearch] = []

    /// Uses the descriptor of `origin`, whose closing is its owner's, on `loop`.
    package init(_ origin: OpenedOrigin, loop: EventLoop, blocking: BlockingPool) {
        self.loop = loop
        self.blocking = blocking
        descriptor = origin.descriptor
        isInline = origin.facts.accessMode == .inline
        super.init(facts: origin.facts, writesStably: origin.honoursDataSync)
    }

    override package func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, into memory: UnsafeMutableRawPointer,
        byteCount: Int, offset: UInt64, work: Int
    ) -> Int32? {
        if isInline, loop.takeInline(byteCount: work) {
            return result(pread(descriptor, memory, byteCount, off_t(offset)))
        }
        loop.read(
            user, tag: tag, token: token, descriptor: descriptor, into: memory,
            byteCount: byteCount, offset: offset)
        return nil
    }

    override package func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, vectors: UnsafePointer<iovec>, count: Int,
        offset: UInt64, work: Int
    ) -> Int32? {
        if isInline, loop.takeInline(byteCount: work) {
            return result(preadv(descriptor, vectors, Int32(count), off_t(offset)))
        }
        loop.read(
            user, tag: tag, token: token, descriptor: descriptor, vectors: vectors, count: count,
            offset: offset)
        return nil
    }

    override package func write(
        _ user: OriginUser, tag: UInt8, token: UInt32, from memory: UnsafeRawPointer,
        byteCount: Int, offset: UInt64, isStable: Bool, work: Int
    ) -> Int32? {
        if isInline, loop.takeInline(byteCount: work) {
            return result(pwrite(descriptor, memory, byteCount, off_t(offset)))
        }
        loop.write(
            user, tag: tag, token: token, descriptor: descriptor, from: memory,
            byteCount: byteCount, offset: offset, dataSync: writesStably && isStable)
        return nil
    }

    /// What a system call returned, with the error number in place of -1.
    private func result(_ outcome: Int) -> Int32 { outcome < 0 ? -errno : Int32(outcome) }

    override package func zero(
        _ user: OriginUser, tag: UInt8, token: UInt32, _ range: ByteRange, _ kind: OriginZeroing
    ) -> Int32? {
        let mode =
            switch kind {
            case .hole: Int32(cl_falloc_punch_hole)
            case .allocated: Int32(cl_falloc_zero_range)
            }
        loop.allocate(
            user, tag: tag, token: token, descriptor: descriptor, mode: mode,
            offset: range.offset, byteCount: range.length)
        return nil
    }

    override package func synchronize(_ user: OriginUser, tag: UInt8, token: UInt32) -> Int32? {
        if isInline { return fdatasync(descriptor) == 0 ? 0 : -errno }
        loop.synchronize(user, tag: tag, token: token, descriptor: descriptor)
        return nil
    }

    // MARK: Questions

    override package func status(
        _ user: OriginUser, token: UInt32, _ range: ByteRange,
        into output: UnsafeMutableBufferPointer<StatusExtent>
    ) {
        if facts.isBlockDevice {
            output[0] = StatusExtent(length: range.length, flags: AllocationFlags.data)
            return user.statusFound(token: token, count: 1, fault: nil)
        }
        let scan = scan ?? HoleScan(descriptor, mailbox: loop.mailbox)
        self.scan = scan
        scan.prepare(range, into: output, for: user, token: token)
        // The pool takes it unless it has ended.
        if !blocking.submit(.origins, work: scan) { scan.refused() }
    }

    override package func findHole(_ user: OriginUser, token: UInt32, _ range: ByteRange) {
        let search = freeSearches.popLast() ?? HoleSearch(of: self)
        search.prepare(range, for: user, token: token)
        if !blocking.submit(.origins, work: search) { search.finished() }
    }

    /// A search is back from the pool.
    func searchEnded(_ search: HoleSearch) { freeSearches.append(search) }

    override package func checkPresence(_ user: OriginUser) -> Bool {
        let check = presence ?? PresenceCheck(descriptor, mailbox: loop.mailbox)
        presence = check
        check.prepare(for: user)
        // The pool takes it unless it has ended.
        return blocking.submit(.origins, work: check)
    }
}
