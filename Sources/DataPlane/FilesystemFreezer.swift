internal import BlockModel
internal import CLinux
internal import Glibc
package import RingIO
package import SnapshotCore
internal import Synchronization

// One filesystem that is synced, frozen and thawed, on a thread of its own: each of these calls
// can block for as long as the filesystem's disk does, and nobody waits for them without a limit.
//
// Invariants
// - Orders are carried out one after the other, in the order in which they were given. So a thaw
//   that was ordered while a freeze was under way thaws what that freeze froze, whenever it comes
//   back.
// - Nothing is thawed that was not frozen here.
// - The thread shares no descriptor with the process, for it may wait for I/O that this process
//   itself serves (see `BlockingPool`). Of the lock beside the list of frozen filesystems it holds
//   a share until it ends, also where the process is killed meanwhile: only then is it known that
//   nothing will be frozen any more.
// - The descriptor is opened before the first freeze, through a mount of that filesystem and no
//   other, and lives until the thread has been dismissed and all before that is done.

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
    private let relay: RelayThread
    private let orders = Mutex<[Order]>([])
    private let available = Semaphore()

    /// Starts the thread. `listPath`: of the list of frozen filesystems; `relay`: calls the
    /// replies to `prepare` and `dismiss`.
    package init(
        _ target: FreezePlan.Target, listPath: String, relay: RelayThread
    ) throws(RingError) {
        self.target = target
        self.relay = relay
        lockPath = FrozenFilesystems.lockPath(of: listPath)
        try ServiceThread.start("freezer") { [self] in work() }
    }

    /// Opens the filesystem and writes back what is dirty; ESTALE when it is mounted nowhere any
    /// more.
    package func prepare(_ reply: @escaping Reply) { order(.prepare(reply)) }

    /// Replies on the thread itself: to one that waits and is no task.
    func freeze(_ reply: @escaping Reply) { order(.freeze(reply)) }

    /// Replies as `freeze` does: EINVAL when somebody else has thawed it; 0 without doing anything when it was not frozen
    /// here.
    func thaw(_ reply: @escaping Reply) { order(.thaw(reply)) }

    /// Ends the thread when all that was ordered is done, then calls `gone`. The last order.
    package func dismiss(_ gone: @escaping @Sendable () -> Void) { order(.dismiss(gone)) }

    private func order(_ order: Order) {
        orders.withLock { $0.append(order) }
        available.signal()
    }

    private func work() {
        // Refused (by a filter of system calls): it works all the same, and a process that is
        // killed at the wrong moment needs its FUSE connections aborted by hand.
        _ = cl_own_descriptors()
        var lock: Int32 = -1
        var descriptor: Int32 = -1
        var isFrozen = false
        while true {
            available.wait()
            switch orders.withLock({ $0.removeFirst() }) {
            case .prepare(let reply):
                lock = FrozenFilesystems.share(lockPath)
                var failure = lock < 0 ? errno : 0
                if failure == 0 {
                    descriptor = open()
                    failure =
                        descriptor < 0 ? ESTALE : Self.failure(cl_sync_filesystem(descriptor))
                }
                let answer = failure
                relay.post { reply(answer) }
            case .freeze(let reply):
                let failure = Self.failure(cl_freeze_filesystem(descriptor))
                isFrozen = failure == 0
                reply(failure)
            case .thaw(let reply):
                reply(isFrozen ? Self.failure(cl_thaw_filesystem(descriptor)) : 0)
                isFrozen = false
            case .dismiss(let gone):
                if descriptor >= 0 { close(descriptor) }
                if lock >= 0 { close(lock) }
                relay.post(gone)
                return
            }
        }
    }

    private static func failure(_ result: Int32) -> Int32 { result == 0 ? 0 : errno }

    /// A descriptor of the filesystem through the first of its mounts that is not hidden by
    /// another one; -1 when there is none.
    private func open() -> Int32 {
        for mount in target.mounts {
            let path = mount.path.map(CChar.init(bitPattern:)) + [0]
            let descriptor = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
            guard descriptor >= 0 else { continue }
            var id: UInt64 = 0
            if cl_mount_id(descriptor, &id) == 0, id == mount.id { return descriptor }
            close(descriptor)
        }
        return -1
    }
}
