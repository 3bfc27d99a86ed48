package import FreezePlanning
internal import Glibc
internal import Host
package import RingIO
internal import Synchronization

// One filesystem that is synced, frozen and thawed, by a process of its own (`ErrandProcess`): each
// of these calls can block for as long as the filesystem's disk does, and that disk may be one that
// the service itself serves. A thread gives the orders; every wait for it is limited.
//
// Invariants
// - Orders are carried out one after the other, in the order in which they were given. So a thaw
//   that was ordered while a freeze was under way thaws what that freeze froze, whenever it comes
//   back.
// - Nothing is thawed that was not frozen here.
// - The process is started before anything is frozen. Of the lock beside the list of frozen
//   filesystems it holds a share until it ends, also where the service is killed meanwhile: only
//   then is it known that nothing will be frozen any more.
// - Its descriptor is opened before the first freeze, through a mount of that filesystem and no
//   other, and lives until all orders are done.

/// The thread of one filesystem; see the head of this file.
package final class FilesystemFreezer: Sendable {
    /// How an order ended: 0, or an errno value.
    package typealias Reply = @Sendable (Int32) -> Void

    private enum Order: Sendable {
        case prepare(Reply)
        case freeze(Reply)
        case thaw(Reply)
        case dismiss(@Sendable () -> Void)
    }

    package let target: FreezePlan.Target
    private let lockPath: String
    private let orders = Mutex<[Order]>([])
    private let available = Semaphore()

    /// Starts the thread. `listPath`: of the list of frozen filesystems.
    package init(_ target: FreezePlan.Target, listPath: String) throws(RingError) {
        self.target = target
        lockPath = FrozenFilesystems.lockPath(of: listPath)
        do throws(HostError) {
            try ServiceThread.start("freezer") { [self] in work() }
        } catch {
            throw RingError(operation: .startThread, errnoValue: error.errnoValue)
        }
    }

    /// Opens the filesystem and writes back what is dirty; ESTALE when it is mounted nowhere any
    /// more.
    package func prepare(_ reply: @escaping Reply) { order(.prepare(reply)) }

    /// Replies on the thread itself, to a waiting thread that is not a task.
    func freeze(_ reply: @escaping Reply) { order(.freeze(reply)) }

    /// Replies as `freeze` does: EINVAL when somebody else has thawed it; 0 without doing anything
    /// when it was not frozen here.
    func thaw(_ reply: @escaping Reply) { order(.thaw(reply)) }

    /// Ends the thread when all that was ordered is done, then calls `gone`. The last order.
    package func dismiss(_ gone: @escaping @Sendable () -> Void) { order(.dismiss(gone)) }

    private func order(_ order: Order) {
        orders.withLock { $0.append(order) }
        available.signal()
    }

    private func work() {
        var errand: Errand?
        var isFrozen = false
        while true {
            available.wait()
            switch orders.withLock({ $0.removeFirst() }) {
            case .prepare(let reply):
                do throws(RingError) {
                    errand = try Errand(FreezeErrand.words(target.mounts, lockPath))
                    reply(Self.failure(errand?.receive()))
                } catch { reply(error.errnoValue) }
            case .freeze(let reply):
                let failure = Self.failure(errand?.order(FreezeErrand.freeze))
                isFrozen = failure == 0
                reply(failure)
            case .thaw(let reply):
                reply(isFrozen ? Self.failure(errand?.order(FreezeErrand.thaw)) : 0)
                isFrozen = false
            case .dismiss(let gone):
                errand?.end()
                return gone()
            }
        }
    }

    /// An errno value; one that was killed answers nothing, and has thawed what it froze.
    private static func failure(_ answer: [String]?) -> Int32 {
        answer?.first.flatMap { Int32($0) } ?? ECHILD
    }
}
