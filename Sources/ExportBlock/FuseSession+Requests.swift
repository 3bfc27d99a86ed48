internal import BlockModel
internal import CLinux
internal import Glibc
internal import RingIO

// What each message of the kernel means. Everything in it is checked before it is used.

extension FuseSession {
    /// Performs or refuses what a message asks for; its reply goes to `place`.
    func perform(_ operation: FuseOperation, _ message: FuseMessage, _ place: UInt32) {
        let isFile = message.header.nodeid == Fuse.fileNode
        switch operation {
        case .read: read(message, place)
        case .write: write(message, place)
        case .synchronize: submit(place, request(.flush))
        case .allocate: allocate(message, place)
        case .seek: seek(message, place)
        case .initialize: initialize(message, place)
        case .lookup: lookup(message, place)
        case .getAttributes: reply(place, body: attributes(isFile: isFile))
        case .extendedAttributes: reply(place, body: extendedAttributes(isFile: isFile))
        case .open: open(message, place)
        case .openDirectory: reply(place, body: fuse_open_out())
        case .readDirectory: readDirectory(message, place)
        case .statistics: reply(place, body: statistics())
        // Size and times are the target's.
        case .setAttributes: reply(place, errnoValue: EPERM)
        case .flush, .release, .releaseDirectory, .synchronizeDirectory, .access, .destroy:
            reply(place, errnoValue: 0)
        case .forget, .batchForget, .interrupt:
            preconditionFailure("a message that is not answered has a place for its reply")
        }
    }

    private func request(
        _ operation: RequestOperation, flags: RequestFlags = [], offset: UInt64 = 0,
        length: UInt64 = 0
    ) -> BlockRequest {
        BlockRequest(
            operation: operation, flags: flags, offset: offset, length: length,
            owner: Unmanaged.passUnretained(self))
    }

    // MARK: Data

    private func read(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_read_in.self),
            body.size <= UInt32(Fuse.dataByteCountMax)
        else { return reply(place, errnoValue: EINVAL) }
        guard body.offset < target.size, body.size > 0 else { return reply(place, errnoValue: 0) }
        let range = ByteRange(
            offset: body.offset, length: min(UInt64(body.size), target.size - body.offset))
        let outer = range.roundedOutward(to: target.alignment)
        var request = request(.read, offset: range.offset, length: range.length)
        let base = buffer(Int(outer.length), for: place)
        request.buffer = base + Int(range.offset - outer.offset)
        request.bufferByteCount = Int(outer.length)
        submit(place, request)
    }

    private func write(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_write_in.self),
            body.size <= UInt32(Fuse.dataByteCountMax),
            message.bodyByteCount == MemoryLayout<fuse_write_in>.size + Int(body.size)
        else { return reply(place, errnoValue: EINVAL) }
        guard !isReadOnly else { return reply(place, errnoValue: EROFS) }
        guard
            let range = ByteRange(
                checking: body.offset, length: UInt64(body.size), within: target.size)
        else { return reply(place, errnoValue: ENOSPC) }
        guard !range.isEmpty else { return reply(place, body: fuse_write_out()) }
        var request = request(.write, offset: range.offset, length: range.length)
        request.buffer = payload(range, for: place)
        request.bufferByteCount = Int(range.length)
        submit(place, request)
    }

    /// Holes and zeroes: both leave zeroes, which is what the loop device promises its users.
    private func allocate(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_fallocate_in.self) else {
            return reply(place, errnoValue: EINVAL)
        }
        let mode = Int32(bitPattern: body.mode)
        let isPunch = mode == FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        let isZero = mode & ~FALLOC_FL_KEEP_SIZE == FALLOC_FL_ZERO_RANGE
        guard isPunch || isZero else { return reply(place, errnoValue: EOPNOTSUPP) }
        guard !isReadOnly else { return reply(place, errnoValue: EROFS) }
        let (end, wraps) = body.offset.addingReportingOverflow(body.length)
        guard body.length > 0, !wraps else { return reply(place, errnoValue: EINVAL) }
        if mode == FALLOC_FL_ZERO_RANGE, end > target.size {
            return reply(place, errnoValue: ENOSPC)
        }
        guard body.offset < target.size else { return reply(place, errnoValue: 0) }
        submit(
            place,
            request(
                .writeZeroes, flags: isPunch ? [] : .keepAllocated, offset: body.offset,
                length: min(end, target.size) - body.offset))
    }

    // MARK: Holes

    /// Bytes of records asked for at a time.
    private static var statusByteCount: Int { 4096 }

    private func seek(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_lseek_in.self),
            body.whence == UInt32(cl_seek_data) || body.whence == UInt32(cl_seek_hole)
        else { return reply(place, errnoValue: EINVAL) }
        guard body.offset < target.size else { return reply(place, errnoValue: ENXIO) }
        var request = request(
            .blockStatus, offset: body.offset, length: target.size - body.offset)
        request.buffer = buffer(Self.statusByteCount, for: place)
        request.bufferByteCount = Self.statusByteCount
        request.ownerToken = UInt64(body.whence)
        submit(place, request)
    }

    /// Looks for the answer in the records that came; false when the search continues behind them.
    func seekEnded(_ request: UnsafeMutablePointer<BlockRequest>, _ place: UInt32) -> Bool {
        guard let records = request.pointee.buffer else {
            preconditionFailure("a block status request has a buffer")
        }
        let count = request.pointee.resultByteCount / MemoryLayout<StatusExtent>.stride
        precondition(count > 0, "a target says something about every range")
        let wantsHole = request.pointee.ownerToken == UInt64(cl_seek_hole)
        var position = request.pointee.offset
        for index in 0..<count {
            let extent = records.load(
                fromByteOffset: index * MemoryLayout<StatusExtent>.stride, as: StatusExtent.self)
            if (extent.flags & AllocationFlags.hole != 0) == wantsHole {
                found(position, place)
                return true
            }
            position += extent.length
        }
        guard position < request.pointee.range.end else {
            // Behind the end there is a hole, and no data.
            found(wantsHole ? position : .max, place)
            return true
        }
        request.pointee.length = request.pointee.range.end - position
        request.pointee.offset = position
        request.pointee.resultByteCount = 0
        return false
    }

    private func found(_ position: UInt64, _ place: UInt32) {
        replies.body(place).storeBytes(of: position, as: UInt64.self)
    }

    /// Answers a seek with what `seekEnded` noted.
    func replySeek(_ place: UInt32) {
        let position = replies.body(place).load(as: UInt64.self)
        if position == .max { return reply(place, errnoValue: ENXIO) }
        reply(place, body: fuse_lseek_out(offset: position))
    }

    // MARK: The file and its directory

    private func initialize(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_init_in.self), body.major == UInt32(FUSE_KERNEL_VERSION)
        else { return reply(place, errnoValue: EPROTO) }
        var answer = fuse_init_out()
        answer.major = UInt32(FUSE_KERNEL_VERSION)
        answer.minor = min(body.minor, Fuse.minorVersion)
        answer.max_readahead = body.max_readahead
        answer.flags = body.flags & (Fuse.initFlags | UInt32(FUSE_INIT_EXT))
        if answer.flags & UInt32(FUSE_INIT_EXT) != 0 {
            answer.flags2 = body.flags2 & Fuse.initFlags2
        }
        answer.max_background = Fuse.backgroundCountMax
        answer.congestion_threshold = Fuse.backgroundCountMax
        answer.max_write = UInt32(Fuse.dataByteCountMax)
        answer.time_gran = 1
        answer.max_pages = Fuse.pageCountMax
        reply(place, body: answer)
    }

    private func lookup(_ message: FuseMessage, _ place: UInt32) {
        guard message.header.nodeid == Fuse.rootNode, message.isName(name) else {
            return reply(place, errnoValue: ENOENT)
        }
        var entry = fuse_entry_out()
        entry.nodeid = Fuse.fileNode
        entry.generation = 1
        entry.entry_valid = Fuse.nameSeconds
        entry.attr = attributes(isFile: true).attr
        reply(place, body: entry)
    }

    private func open(_ message: FuseMessage, _ place: UInt32) {
        guard let body = message.body(fuse_open_in.self) else {
            return reply(place, errnoValue: EINVAL)
        }
        if isReadOnly, Int32(bitPattern: body.flags) & O_ACCMODE != O_RDONLY {
            return reply(place, errnoValue: EROFS)
        }
        reply(
            place,
            body: fuse_open_out(
                fh: 0, open_flags: UInt32(FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES),
                padding: 0))
    }

    /// Never remembered by the kernel: the size may change.
    private func attributes(isFile: Bool) -> fuse_attr_out {
        var answer = fuse_attr_out()
        answer.attr.ino = isFile ? Fuse.fileNode : Fuse.rootNode
        answer.attr.mode = mode(isFile: isFile)
        answer.attr.nlink = isFile ? 1 : 2
        answer.attr.uid = geteuid()
        answer.attr.gid = getegid()
        answer.attr.blksize = UInt32(blockByteCount)
        answer.attr.atime = startSeconds
        answer.attr.mtime = startSeconds
        answer.attr.ctime = startSeconds
        if isFile {
            answer.attr.size = target.size
            answer.attr.blocks = (target.size + 511) / 512
        }
        return answer
    }

    private func extendedAttributes(isFile: Bool) -> cl_fuse_statx_out {
        let plain = attributes(isFile: isFile).attr
        var answer = cl_fuse_statx_out()
        answer.mask = UInt32(cl_statx_basic)
        answer.block_size = plain.blksize
        answer.links = plain.nlink
        answer.uid = plain.uid
        answer.gid = plain.gid
        answer.mode = UInt16(truncatingIfNeeded: plain.mode)
        answer.inode = plain.ino
        answer.size = plain.size
        answer.blocks = plain.blocks
        answer.access.seconds = Int64(startSeconds)
        answer.modify.seconds = Int64(startSeconds)
        answer.change.seconds = Int64(startSeconds)
        return answer
    }

    private func mode(isFile: Bool) -> UInt32 {
        isFile
            ? UInt32(Glibc.S_IFREG) | (isReadOnly ? 0o400 : 0o600) : UInt32(Glibc.S_IFDIR) | 0o700
    }

    private func statistics() -> fuse_statfs_out {
        var answer = fuse_statfs_out()
        answer.st.blocks = target.size / blockByteCount
        answer.st.files = 1
        // The loop device takes it for the granularity of discards.
        answer.st.bsize = UInt32(blockByteCount)
        answer.st.frsize = UInt32(blockByteCount)
        answer.st.namelen = 255
        return answer
    }

    private func readDirectory(_ message: FuseMessage, _ place: UInt32) {
        guard message.header.nodeid == Fuse.rootNode, let read = message.body(fuse_read_in.self)
        else { return reply(place, errnoValue: EINVAL) }
        let body = replies.body(place)
        var byteCount = 0
        if read.offset == 0 {
            for (position, entry) in [([46], false), ([46, 46], false), (name, true)].enumerated() {
                byteCount += Self.store(
                    entry.0, isFile: entry.1, position: UInt64(position + 1), at: body + byteCount)
            }
        }
        guard byteCount <= Int(read.size) else { return reply(place, errnoValue: EINVAL) }
        reply(place, bodyByteCount: byteCount, data: nil)
    }

    /// Stores a `struct fuse_dirent`, whose name follows it, and returns its bytes.
    private static func store(
        _ name: [UInt8], isFile: Bool, position: UInt64, at place: UnsafeMutableRawPointer
    ) -> Int {
        let byteCount = (24 + name.count + 7) & ~7
        memset(place, 0, byteCount)
        place.storeBytes(of: isFile ? Fuse.fileNode : Fuse.rootNode, as: UInt64.self)
        place.storeBytes(of: position, toByteOffset: 8, as: UInt64.self)
        place.storeBytes(of: UInt32(name.count), toByteOffset: 16, as: UInt32.self)
        let kind = isFile ? UInt32(DT_REG) : UInt32(DT_DIR)
        place.storeBytes(of: kind, toByteOffset: 20, as: UInt32.self)
        name.withUnsafeBytes { (place + 24).copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
        return byteCount
    }
}
