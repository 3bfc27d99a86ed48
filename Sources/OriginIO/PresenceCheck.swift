internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

/// Asks whether a block device is still there. Kept by its access and used again, one question at a
/// time.
final class PresenceCheck: BlockingWork, @unchecked Sendable {
    // SAFETY: `BlockingWork` says which thread touches the fields when.
    private let descriptor: Int32
    private var user: OriginUser?
    private var fault: Fault?

    init(_ descriptor: Int32, mailbox: LoopMailbox) {
        self.descriptor = descriptor
        super.init(mailbox: mailbox)
    }

    func prepare(for user: OriginUser) { self.user = user }

    override func perform() {
        var size: UInt64 = 0
        fault = nil
        if cl_block_device_size(descriptor, &size) != 0 {
            fault = Fault(errnoValue: errno)
        } else if size == 0 {
            // So the kernel marks a disk that was taken away.
            fault = .deviceGone
        }
    }

    override func finished() {
        let user = user
        self.user = nil
        user?.presenceChecked(fault)
    }
}
