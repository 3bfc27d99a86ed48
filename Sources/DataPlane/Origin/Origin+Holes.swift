internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// Where the holes of the origin are, for zeroings and discards: a snapshot needs nothing of them.
// lseek may read the filesystem's metadata from the disk, so it runs on the blocking pool.

extension Origin {
    /// Finds out whether the origin has a hole where `range` begins, and how far it reaches; the
    /// device is told, perhaps at once.
    func findHoles(_ range: ByteRange, for index: RequestIndex) {
        let search = freeHoleSearches.popLast() ?? HoleSearch(origin: self)
        search.prepare(range, for: index)
        scanCount += 1
        if !blocking.submit(.origins, work: search) { search.finished() }
    }

    /// A search is back from the pool.
    fileprivate func searchEnded(
        _ search: HoleSearch, _ index: RequestIndex, isHole: Bool, length: UInt64, isCertain: Bool
    ) {
        freeHoleSearches.append(search)
        scanCount -= 1
        if !isCertain { device.engine.originReportsHoles = false }
        device.engine.originScanned(index, isHole: isHole, length: length)
        device.engineTouched()
        // It may be what a closing device waits for.
        if scanCount == 0 { device.usersChanged() }
    }
}

/// Looks for the first run of a range. Kept by the origin and used again, one request at a time.
final class HoleSearch: BlockingWork, @unchecked Sendable {
    // `BlockingWork` says which thread touches the fields when.
    private unowned let origin: Origin
    private let descriptor: Int32
    private var range = ByteRange(offset: 0, length: 0)
    private var index = RequestIndex.none
    private var isHole = false
    private var length: UInt64 = 0
    private var isCertain = true

    /// Of a range that could not be looked at so much counts as data, before the next question.
    private static let unknownByteCount: UInt64 = 64 << 20

    init(origin: Origin) {
        self.origin = origin
        descriptor = origin.descriptor
        super.init(mailbox: origin.loop.mailbox)
    }

    func prepare(_ range: ByteRange, for index: RequestIndex) {
        self.range = range
        self.index = index
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
        origin.searchEnded(self, index, isHole: isHole, length: length, isCertain: isCertain)
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
