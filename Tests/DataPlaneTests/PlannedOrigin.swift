import BlockModel
import CLinux
import Glibc
import OriginIO
import Origins
import RingIO
import Synchronization

/// What a device does with its disk.
enum DiskOperation: Hashable, Sendable { case read, write, zero, synchronize }

/// How an operation of the disk ends.
enum DiskOutcome: Sendable {
    /// Fails with this error number.
    case failure(Int32)
    /// Comes back with so many bytes.
    case short(Int)
    /// Is performed when the plan says so.
    case delayed
}

/// An origin that refuses, delays and comes back short as planned; in everything else a file.
final class PlannedOrigin: OriginAccess {
    private let file: DescriptorAccess
    private let plan: Plan

    init(_ origin: OpenedOrigin, _ loop: EventLoop, _ blocking: BlockingPool, _ plan: Plan) {
        file = DescriptorAccess(origin, loop: loop, blocking: blocking)
        self.plan = plan
        super.init(facts: file.facts, writesStably: file.writesStably)
    }

    override init(facts: OriginFacts, writesStably: Bool) {
        preconditionFailure("a planned origin has a file")
    }

    private func delay(
        _ user: OriginUser, _ tag: UInt8, _ token: UInt32, _ perform: @escaping () -> Int32?
    ) -> Int32? {
        plan.delayed {
            // Through the ring it comes by itself.
            if let result = perform() {
                user.completed(tag: tag, token: token, result: result, flags: 0)
            }
        }
        return nil
    }

    override func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, into memory: UnsafeMutableRawPointer,
        byteCount: Int, offset: UInt64, work: Int
    ) -> Int32? {
        let file = file
        func perform(_ byteCount: Int) -> Int32? {
            file.read(
                user, tag: tag, token: token, into: memory, byteCount: byteCount, offset: offset,
                work: work)
        }
        switch plan.outcome(of: .read) {
        case .failure(let number): return -number
        case .short(let count): return count == 0 ? 0 : perform(min(count, byteCount))
        case .delayed: return delay(user, tag, token) { perform(byteCount) }
        case nil: return perform(byteCount)
        }
    }

    override func read(
        _ user: OriginUser, tag: UInt8, token: UInt32, vectors: UnsafePointer<iovec>, count: Int,
        offset: UInt64, work: Int
    ) -> Int32? {
        let file = file
        func perform() -> Int32? {
            file.read(
                user, tag: tag, token: token, vectors: vectors, count: count, offset: offset,
                work: work)
        }
        switch plan.outcome(of: .read) {
        case .failure(let number): return -number
        case .short(let byteCount):
            guard let place = vectors[0].iov_base, byteCount > 0 else { return 0 }
            return file.read(
                user, tag: tag, token: token, into: place,
                byteCount: min(byteCount, vectors[0].iov_len), offset: offset, work: work)
        case .delayed: return delay(user, tag, token, perform)
        case nil: return perform()
        }
    }

    override func write(
        _ user: OriginUser, tag: UInt8, token: UInt32, from memory: UnsafeRawPointer,
        byteCount: Int, offset: UInt64, isStable: Bool, work: Int
    ) -> Int32? {
        let file = file
        func perform(_ byteCount: Int) -> Int32? {
            file.write(
                user, tag: tag, token: token, from: memory, byteCount: byteCount, offset: offset,
                isStable: isStable, work: work)
        }
        switch plan.outcome(of: .write) {
        case .failure(let number): return -number
        case .short(let count): return count == 0 ? 0 : perform(min(count, byteCount))
        case .delayed: return delay(user, tag, token) { perform(byteCount) }
        case nil: return perform(byteCount)
        }
    }

    override func zero(
        _ user: OriginUser, tag: UInt8, token: UInt32, _ range: ByteRange, _ kind: OriginZeroing
    ) -> Int32? {
        if case .failure(let number) = plan.outcome(of: .zero) { return -number }
        return file.zero(user, tag: tag, token: token, range, kind)
    }

    override func synchronize(_ user: OriginUser, tag: UInt8, token: UInt32) -> Int32? {
        if case .failure(let number) = plan.outcome(of: .synchronize) { return -number }
        return file.synchronize(user, tag: tag, token: token)
    }

    override func status(
        _ user: OriginUser, token: UInt32, _ range: ByteRange,
        into output: UnsafeMutableBufferPointer<StatusExtent>
    ) {
        file.status(user, token: token, range, into: output)
    }

    override func findHole(_ user: OriginUser, token: UInt32, _ range: ByteRange) {
        file.findHole(user, token: token, range)
    }

    override func checkPresence(_ user: OriginUser) -> Bool { file.checkPresence(user) }
}

extension PlannedOrigin {
    /// What is planned; shared by the test and the loop.
    final class Plan: @unchecked Sendable {
        // The delayed operations are touched on the loop only, the outcomes under the lock.
        private let outcomes = Mutex<[DiskOperation: [DiskOutcome]]>([:])
        private let count = Mutex(0)
        private var waiting: [() -> Void] = []

        /// The next operations of this kind end so; those behind them as always.
        func next(_ operation: DiskOperation, _ planned: DiskOutcome...) {
            outcomes.withLock { $0[operation, default: []] += planned }
        }

        /// Everything that was planned has happened.
        var isOver: Bool { outcomes.withLock { $0.values.allSatisfy(\.isEmpty) } }

        fileprivate func outcome(of operation: DiskOperation) -> DiskOutcome? {
            outcomes.withLock { outcomes in
                guard let first = outcomes[operation]?.first else { return nil }
                outcomes[operation]?.removeFirst()
                return first
            }
        }

        fileprivate func delayed(_ operation: @escaping () -> Void) {
            waiting.append(operation)
            count.withLock { $0 += 1 }
        }

        /// Operations that are delayed now.
        var delayedCount: Int { count.withLock { $0 } }

        /// Performs those that are delayed.
        func release(on thread: LoopThread) async {
            await thread.mailbox.run { [self] _ in
                let released = waiting
                waiting = []
                count.withLock { $0 = 0 }
                for operation in released { operation() }
            }
        }
    }
}

extension DeviceHarness {
    /// A device over a file whose disk behaves as planned.
    convenience init(path: String, plan: PlannedOrigin.Plan) async throws {
        try await self.init(
            path: path, accessing: { PlannedOrigin($0, $1, $2, plan) })
    }
}
