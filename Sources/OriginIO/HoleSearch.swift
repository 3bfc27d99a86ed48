internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

/// Looks for the first run of a range: a hole, or data. Kept by its access and used again, one
/// request at a time.
final class HoleSearch: BlockingWork, @unchecked Sendable {
    // SAFETY: `BlockingWork` says which thread touches the fields when.
    private unowned let access: DescriptorAccess
    private let descriptor: Int32
    private var range = ByteRange(offset: 0, length: 0)
    private var user: OriginUser?
    private var token: UInt32 = 0
    private var isHole = false
    private var length: UInt64 = 0
    private var isCertain = true

    /// Of a range that could not be looked at so much counts as data, before the next question.
    private static let unknownByteCount: UInt64 = 64 << 20

    init(of access: DescriptorAccess) {
        self.access = access
        descriptor = access.descriptor
        super.init(mailbox: access.loop.mailbox)
    }

    func prepare(_ range: ByteRange, for user: OriginUser, token: UInt32) {
        self.range = range
        self.user = user
        self.token = token
        isHole = false
        length = min(range.length, Self.unknownByteCount)
        isCertain = true
    }

    override func perform() {
        guard Self.reportsHolesReliably(descriptor) else {
            length = range.length
            isCertain = false
            return
        }
        let dataStart = lseek(descriptor, off_t(range.offset), cl_seek_data)
        if dataStart < 0 {
            // ENXIO: no data up to the end of the file.
            isHole = errno == ENXIO
            if isHole { length = range.length }
            return
        }
        isHole = dataStart > range.offset
        let end = isHole ? dataStart : lseek(descriptor, off_t(range.offset), cl_seek_hole)
        // Data that became a hole between the two calls counts as data.
        guard end > range.offset else { return }
        length = min(UInt64(end), range.end) - range.offset
    }

    override func finished() {
        let user = user
        self.user = nil
        access.searchEnded(self)
        user?.holeFound(token: token, isHole: isHole, length: length, isCertain: isCertain)
    }

    /// Filesystems that never call a hole what has data, written back or not. Of others, networked
    /// ones among them, nobody knows; a snapshot would lose what they forget.
    private static func reportsHolesReliably(_ descriptor: Int32) -> Bool {
        var type = 0
        guard cl_filesystem_type(descriptor, &type) == 0 else { return false }
        return [cl_ext_magic, cl_xfs_magic, cl_btrfs_magic, cl_f2fs_magic, cl_tmpfs_magic]
            .contains(type)
    }
}
