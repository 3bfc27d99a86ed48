internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import Glibc
internal import RingIO
internal import Synchronization

// One source of difference storage: performs what `StorageSpace` decides. Shared by the devices
// of a snapshot, which may live on several loops; they meet here once per extent of 4 MiB.
//
// Invariants
// - The descriptor or mapping lives until the last user is gone: whoever opened the source, devices,
//   and what runs on the blocking pool. A number or address that was closed may belong to somebody
//   else by the time a late job uses it.
// - Bytes are read and written by the loops themselves; only growing, giving back and closing,
//   which may block, run on the blocking pool.

/// One source of difference storage.
package final class StorageSource: Sendable {
    /// What the events of a source tell.
    package enum Notice: Sendable {
        /// Less than a tenth of the limit or one growth step is left.
        case lowSpace
        /// It grew by that many bytes.
        case grown(UInt64)
    }

    /// Bytes the source is made of, for reports.
    package struct Report: Sendable {
        package var name: String
        package var capacity: UInt64
        package var limit: UInt64
        package var granted: UInt64
    }

    /// Where the bytes are.
    enum Access: Sendable {
        case ring(descriptor: Int32)
        case inline(descriptor: Int32)
        case memory(address: UInt)
    }

    typealias Reply = @Sendable (EventLoop, Result<UInt64, Fault>) -> Void

    private struct Wish {
        let purpose: StoragePurpose
        let mailbox: LoopMailbox
        let reply: Reply
    }

    private struct State {
        var space: StorageSpace
        var wishes: [Wish] = []
        /// Whoever opened the source is its first user.
        var userCount = 1
        /// Users that may still want extents.
        var askerCount = 1
        /// Of the blocking pool.
        var jobCount = 0
        var isClosed = false
        var closeWaiters: [@Sendable () -> Void] = []
    }

    /// Bytes that are allocated page by page at a time, some 30 and 60 us: then a loop that shares
    /// the file or the processor gets its turn.
    private static let pagedGrowthPiece: UInt64 = 128 << 10
    private static let residencePiece = 256 << 10
    /// Bytes that other files grow by at a time: the end of a snapshot waits for one of them, and a
    /// filesystem may have to write them.
    private static let growthPiece: UInt64 = 64 << 20

    package let name: String
    let access: Access
    let foundations: Set<Foundation>
    private let medium: OpenedStorage.Medium
    private let mappedByteCount: Int
    private let blocking: BlockingPool
    private let notify: @Sendable (Notice) -> Void
    private let state: Mutex<State>

    /// Takes over what was opened, which stays the caller's when this throws. What can grow uses at
    /// most `limit` bytes.
    init(
        _ opened: OpenedStorage, limit: UInt64, blocking: BlockingPool,
        notify: @escaping @Sendable (Notice) -> Void
    ) throws(AttachError) {
        name = opened.name
        medium = opened.medium
        foundations = opened.foundations
        self.blocking = blocking
        self.notify = notify
        let space: StorageSpace
        try Self.checkSize(of: opened, limit: limit)
        switch opened.medium {
        case .file(let descriptor, let isInline):
            access = isInline ? .inline(descriptor: descriptor) : .ring(descriptor: descriptor)
            mappedByteCount = 0
            // tmpfs allocates page by page, about 1 us each: a step that took long would have
            // writers wait for it.
            let step = isInline ? 32 << 20 : min(max(limit / 16, 16 << 20), 1 << 30)
            space = StorageSpace(capacity: 0, limit: limit, growthStep: min(step, limit))
        case .blockDevice(let descriptor, let byteCount):
            access = .ring(descriptor: descriptor)
            mappedByteCount = 0
            space = StorageSpace(capacity: byteCount, limit: byteCount, growthStep: 0)
        case .memory(let byteCount):
            mappedByteCount = Int(byteCount)
            access = .memory(address: try Self.map(mappedByteCount))
            space = StorageSpace(capacity: byteCount, limit: byteCount, growthStep: 0)
        }
        state = Mutex(State(space: space))
        // The first writer after the cut finds room instead of waiting for the first step.
        if let growth = state.withLock({ $0.space.growthDue() }) { grow(by: growth) }
    }

    /// Space is handed out in extents: less than one is none at all.
    private static func checkSize(of opened: OpenedStorage, limit: UInt64) throws(AttachError) {
        let byteCount =
            switch opened.medium {
            case .file: limit
            case .blockDevice(_, let byteCount), .memory(let byteCount): byteCount
            }
        guard byteCount >= ExtentTable.extentByteCount else {
            throw AttachError(
                .unsuitable,
                "storage \(opened.name) would have \(byteCount) bytes; space is used in extents of "
                    + "4 MiB, so give at least 4M")
        }
    }

    /// Memory that is neither dumped nor swapped, resident only where used.
    private static func map(_ byteCount: Int) throws(AttachError) -> UInt {
        let mapping = mmap(
            nil, byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            throw AttachError(
                .failed, "storage memory:\(byteCount): \(OriginOpener.text(of: errno))")
        }
        guard madvise(mapping, byteCount, MADV_DONTDUMP) == 0,
            cl_lock_on_fault(mapping, byteCount) == 0
        else {
            let failure = errno
            munmap(mapping, byteCount)
            throw AttachError(
                .failed,
                "storage memory:\(byteCount) cannot be kept out of swap: "
                    + "\(OriginOpener.text(of: failure)); raise the limit of locked memory")
        }
        return UInt(bitPattern: mapping)
    }

    /// There is another user, until it says `userAsksNoMore`, then `drained`.
    func userAdded() {
        state.withLock { state in
            state.userCount += 1
            state.askerCount += 1
        }
    }

    /// A user wants no more extents. After the last one growth under way breaks off, so that
    /// whoever waits for it and for the end does not wait long.
    func userAsksNoMore() { state.withLock { $0.askerCount -= 1 } }

    package var report: Report {
        state.withLock {
            Report(
                name: name, capacity: $0.space.capacity, limit: $0.space.limit,
                granted: $0.space.grantedByteCount)
        }
    }

    // MARK: Extents

    /// A device wants an extent, its first one here or more room ahead of need. The answer comes at
    /// once, or by `reply` on the loop (then nil is returned): when the source must grow, or when
    /// memory is made resident.
    func extentWanted(
        for purpose: StoragePurpose, isFirst: Bool, mailbox: LoopMailbox,
        reply: @escaping Reply
    ) -> Result<UInt64, Fault>? {
        let (answer, growth, isLow) = state.withLock { state in
            let answer = state.space.extentWanted(for: purpose)
            if answer == .growing {
                state.wishes.append(Wish(purpose: purpose, mailbox: mailbox, reply: reply))
            }
            return (answer, state.space.growthDue(), state.space.lowSpaceDue())
        }
        if isLow { notify(.lowSpace) }
        if let growth { grow(by: growth) }
        switch answer {
        case .granted(let byteOffset):
            let wish = Wish(purpose: purpose, mailbox: mailbox, reply: reply)
            if !isFirst, populate(byteOffset, for: wish) { return nil }
            return .success(byteOffset)
        case .full: return .failure(.noSpace)
        case .growing: return nil
        }
    }

    /// Makes an extent of memory resident before it is granted: faults of the loop would cost it as
    /// much as copying. Not for the first extent of a device: many at once, right after a cut, took
    /// the processors from the next one. Large pages are not asked for: compaction for them took
    /// 7 ms per extent of fragmented memory. False when it is not done.
    private func populate(_ byteOffset: UInt64, for wish: Wish) -> Bool {
        guard case .memory(let address) = access else { return false }
        state.withLock { $0.jobCount += 1 }
        let accepted = blocking.submit { [self] in
            guard let start = UnsafeMutableRawPointer(bitPattern: address + UInt(byteOffset))
            else { preconditionFailure("memory storage has an address") }
            // Where it is refused, faults at first use do.
            for offset in stride(
                from: 0, to: Int(ExtentTable.extentByteCount), by: Self.residencePiece)
            {
                _ = cl_populate(start + offset, Self.residencePiece)
                sched_yield()
            }
            let isHeard = wish.mailbox.postWhenRoom { loop in
                wish.reply(loop, .success(byteOffset))
            }
            precondition(isHeard, "a loop does not stop while a device waits for an extent")
            jobEnded()
        }
        if !accepted { jobEnded() }
        return accepted
    }

    private func grow(by byteCount: UInt64) {
        guard case .file(let descriptor, let isInline) = medium else {
            preconditionFailure("only files grow")
        }
        // tmpfs allocates page by page with the file locked: a loop that stores blocks meanwhile
        // would wait for the whole step.
        let piece = isInline ? Self.pagedGrowthPiece : Self.growthPiece
        let start = state.withLock { state in
            state.jobCount += 1
            return state.space.capacity
        }
        let accepted = blocking.submit { [self] in
            var done: UInt64 = 0
            while done < byteCount, state.withLock({ $0.askerCount > 0 }) {
                let length = min(piece, byteCount - done)
                let result = posix_fallocate(
                    descriptor, off_t(start + done), off_t(length))
                if result == EINTR { continue }
                guard result == 0 else { break }
                done += length
                sched_yield()
            }
            grown(by: done == byteCount ? byteCount : 0)
        }
        if !accepted { grown(by: 0) }
    }

    private func grown(by byteCount: UInt64) {
        // The first step belongs to opening the source: only what follows is news.
        let isFirst = state.withLock { $0.space.capacity == 0 }
        if byteCount > 0, !isFirst { notify(.grown(byteCount)) }
        let answers = state.withLock { state -> [(Wish, Result<UInt64, Fault>)] in
            if byteCount > 0 {
                state.space.grown(by: byteCount)
            } else {
                state.space.growthRefused()
            }
            var answers: [(Wish, Result<UInt64, Fault>)] = []
            var waiting: [Wish] = []
            for wish in state.wishes {
                switch state.space.extentWanted(for: wish.purpose) {
                case .granted(let byteOffset): answers.append((wish, .success(byteOffset)))
                case .full: answers.append((wish, .failure(.noSpace)))
                case .growing: waiting.append(wish)
                }
            }
            state.wishes = waiting
            return answers
        }
        for (wish, answer) in answers {
            let accepted = wish.mailbox.postWhenRoom { loop in wish.reply(loop, answer) }
            precondition(accepted, "a loop does not stop while a device waits for an extent")
        }
        let growth = state.withLock { $0.space.growthDue() }
        if let growth { grow(by: growth) }
        jobEnded()
    }

    /// A device gives an extent back: what is in it is dropped or overwritten, then it is free.
    func extentReleased(byteOffset: UInt64) {
        state.withLock { $0.jobCount += 1 }
        let accepted = blocking.submit { [self] in
            erase(byteOffset: byteOffset, byteCount: ExtentTable.extentByteCount)
            state.withLock { $0.space.extentReleased(byteOffset: byteOffset) }
            jobEnded()
        }
        guard !accepted else { return }
        state.withLock { $0.space.extentReleased(byteOffset: byteOffset) }
        jobEnded()
    }

    private func erase(byteOffset: UInt64, byteCount: UInt64) {
        switch medium {
        case .file(let descriptor, _):
            // Space given back early is a courtesy: the file ends with its last descriptor.
            _ = cl_punch_hole(descriptor, byteOffset, byteCount)
        case .blockDevice(let descriptor, _):
            if cl_punch_hole(descriptor, byteOffset, byteCount) != 0 {
                overwrite(descriptor, byteOffset: byteOffset, byteCount: byteCount)
            }
        case .memory:
            guard case .memory(let address) = access,
                let start = UnsafeMutableRawPointer(bitPattern: address + UInt(byteOffset))
            else { preconditionFailure("memory storage has an address") }
            // It is locked in memory; older kernels drop only what is not.
            if cl_drop_pages(start, Int(byteCount)) != 0 {
                madvise(start, Int(byteCount), MADV_DONTNEED)
            }
        }
    }

    private func overwrite(_ descriptor: Int32, byteOffset: UInt64, byteCount: UInt64) {
        var done: UInt64 = 0
        while done < byteCount {
            let piece = min(byteCount - done, UInt64(ZeroMemory.byteCount))
            let result = pwrite(
                descriptor, ZeroMemory.address, Int(piece), off_t(byteOffset + done))
            // A device that no longer takes writes cannot be cleaned; it is failing anyway.
            guard result > 0 || errno == EINTR else { return }
            if result > 0 { done += UInt64(result) }
        }
    }

    // MARK: End

    /// A user is gone: a device that has no block left here, say. The last one closes the source.
    func drained() {
        let isLast = state.withLock { state in
            state.userCount -= 1
            return state.userCount == 0 && state.jobCount == 0
        }
        if isLast { closeSoon() }
    }

    private func jobEnded() {
        let isLast = state.withLock { state in
            state.jobCount -= 1
            return state.userCount == 0 && state.jobCount == 0
        }
        if isLast { closeSoon() }
    }

    private func closeSoon() {
        if !blocking.submit({ [self] in close() }) { close() }
    }

    /// Returns when the source is closed, or at once while a device still uses it.
    func closed() async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let isNow = state.withLock { state in
                guard state.userCount == 0, !state.isClosed else { return true }
                state.closeWaiters.append { continuation.resume() }
                return false
            }
            if isNow { continuation.resume() }
        }
    }

    private func close() {
        switch medium {
        case .file(let descriptor, _), .blockDevice(let descriptor, _): Glibc.close(descriptor)
        case .memory:
            guard case .memory(let address) = access,
                let start = UnsafeMutableRawPointer(bitPattern: address)
            else { preconditionFailure("memory storage has an address") }
            munmap(start, mappedByteCount)
        }
        let waiters = state.withLock { state in
            state.isClosed = true
            defer { state.closeWaiters = [] }
            return state.closeWaiters
        }
        for waiter in waiters { waiter() }
    }
}
