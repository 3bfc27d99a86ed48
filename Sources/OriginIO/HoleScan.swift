internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

/// Describes a range of a file as maximal runs of data and holes. Kept by its access and used
/// again, one request at a time.
final class HoleScan: BlockingWork, @unchecked Sendable {
    // SAFETY: `BlockingWork` says which thread touches the fields when; the output belongs to the
    // request, which nobody else touches until it is finished.
    private let descriptor: Int32
    private var range = ByteRange(offset: 0, length: 0)
    private var output = UnsafeMutableBufferPointer<StatusExtent>(start: nil, count: 0)
    private var user: OriginUser?
    private var token: UInt32 = 0
    private var count = 0
    private var fault: Fault?

    init(_ descriptor: Int32, mailbox: LoopMailbox) {
        self.descriptor = descriptor
        super.init(mailbox: mailbox)
    }

    func prepare(
        _ range: ByteRange, into output: UnsafeMutableBufferPointer<StatusExtent>,
        for user: OriginUser, token: UInt32
    ) {
        precondition(self.user == nil, "one scan of an origin is under way at a time")
        self.range = range
        self.output = output
        self.user = user
        self.token = token
        count = 0
        fault = nil
    }

    override func perform() {
        var position = range.offset
        while position < range.end, count < output.count {
            guard let dataStart = seek(position, cl_seek_data) else { return }
            if dataStart > position {
                output[count] = StatusExtent(
                    length: dataStart - position,
                    flags: AllocationFlags.hole | AllocationFlags.zero)
            } else {
                guard let dataEnd = seek(position, cl_seek_hole) else { return }
                // Data that became a hole between the two calls: the next round reports it.
                guard dataEnd > position else { continue }
                output[count] = StatusExtent(
                    length: dataEnd - position, flags: AllocationFlags.data)
            }
            position += output[count].length
            count += 1
        }
    }

    /// The pool does not take it.
    func refused() {
        fault = .shutdown
        finished()
    }

    override func finished() {
        let user = user
        self.user = nil
        user?.statusFound(token: token, count: count, fault: fault)
    }

    /// Where data or a hole begins at or behind `position`, the end of the range at most; nil
    /// with the fault noted. A filesystem that cannot tell says that all is data.
    private func seek(_ position: UInt64, _ whence: Int32) -> UInt64? {
        let result = lseek(descriptor, off_t(position), whence)
        if result >= 0 { return min(UInt64(result), range.end) }
        let failure = errno
        if failure == ENXIO { return range.end }
        if failure == EINVAL || failure == EOPNOTSUPP {
            return whence == cl_seek_data ? position : range.end
        }
        fault = Fault(errnoValue: failure)
        return nil
    }
}
