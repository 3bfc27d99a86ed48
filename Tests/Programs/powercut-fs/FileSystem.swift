// The kernel's FUSE protocol for a directory with one file, `disk`. Every open bypasses the page
// cache, so a write reaches us when it is issued and an fsync when it is asked for. One thread
// answers everything; a request that is to take long waits in a queue without holding up others.

import CTestSupport
import Glibc

/// Serves one mounted file system.
struct FileSystem {
    /// What requests get while the power is off.
    private static let powerOffError = EIO
    private static let fileNode: UInt64 = 2
    private static let writeByteCountMaximum = 1 << 20

    private let connection: Int32
    private var disk: Disk
    private var faults = Faults()
    private var isPowerOff = false
    private var delayed: [(due: Int, message: [UInt8])] = []
    private var counts: [Operation: Int] = [:]
    private var changed = timespec()
    private var message = [UInt8](repeating: 0, count: FileSystem.writeByteCountMaximum + 8192)
    private var reply = [UInt8](repeating: 0, count: FileSystem.writeByteCountMaximum + 8192)

    init(connection: Int32, byteCount: Int) {
        self.connection = connection
        disk = Disk(byteCount: byteCount)
        clock_gettime(CLOCK_REALTIME, &changed)
    }

    /// Answers requests and commands until the file system is unmounted or the input ends.
    mutating func run() {
        var commands = CommandInput()
        while true {
            var entries = [
                pollfd(fd: connection, events: Int16(POLLIN), revents: 0),
                pollfd(fd: 0, events: Int16(POLLIN), revents: 0),
            ]
            let next = delayed.map(\.due).min().map { max(0, $0 - Self.nowMilliseconds()) }
            _ = poll(&entries, 2, Int32(next ?? -1))
            answerDue()
            if entries[1].revents != 0 {
                guard let lines = commands.readLines() else { return }
                for line in lines { print(obey(line)) }
                fflush(nil)
            }
            if entries[0].revents != 0 && !answerNext() { return }
        }
    }

    // MARK: Commands

    /// Does what the line says and returns the answer.
    private mutating func obey(_ line: String) -> String {
        let words = line.split(separator: " ").map(String.init)
        let operation = words.count > 1 ? Operation(rawValue: words[1]) : nil
        switch (words.first, words.count, operation) {
        case ("cut", 2, _):
            isPowerOff = true
            let result = disk.cutPower(seed: UInt64(words[1]))
            return "cut \(result.changes) \(result.kept)"
        case ("on", 1, _):
            isPowerOff = false
            return "on"
        case ("fail", 4..., let operation?):
            let lasting = words.count == 5
            faults.fail(
                operation, at: Int(words[2]) ?? 1, with: Int32(words[3]) ?? EIO, lasting: lasting)
            return "fail"
        case ("delay", 3, let operation?):
            faults.delay(operation, milliseconds: Int(words[2]) ?? 0)
            return "delay"
        case ("clear", 1, _):
            faults.clear()
            return "clear"
        case ("counts", 1, _):
            let text = Operation.allCases.map { "\($0.rawValue) \(counts[$0] ?? 0)" }
            return "counts \(text.joined(separator: " ")) unsynced \(disk.unsyncedByteCount)"
        default:
            return "? \(line)"
        }
    }

    // MARK: Requests

    /// Takes one request from the kernel; false when the file system is unmounted.
    private mutating func answerNext() -> Bool {
        let count = Glibc.read(connection, &message, message.count)
        if count < 0 { return errno == EINTR || errno == EAGAIN || errno == ENOENT }
        let header: fuse_in_header = load(at: 0)
        let delay = operation(header.opcode).map { faults.delayMilliseconds(of: $0) } ?? 0
        if delay > 0 {
            delayed.append((Self.nowMilliseconds() + delay, Array(message[..<count])))
        } else {
            answer()
        }
        return true
    }

    private mutating func answerDue() {
        guard !delayed.isEmpty else { return }
        let now = Self.nowMilliseconds()
        let due = delayed.filter { $0.due <= now }
        delayed.removeAll { $0.due <= now }
        for entry in due {
            message.replaceSubrange(0..<entry.message.count, with: entry.message)
            answer()
        }
    }

    private func operation(_ opcode: UInt32) -> Operation? {
        switch opcode {
        case FUSE_READ.rawValue: .read
        case FUSE_WRITE.rawValue, FUSE_FALLOCATE.rawValue: .write
        case FUSE_FSYNC.rawValue: .fsync
        default: nil
        }
    }

    /// Answers the request in `message`.
    private mutating func answer() {
        let header: fuse_in_header = load(at: 0)
        if let operation = operation(header.opcode) {
            counts[operation, default: 0] += 1
            if isPowerOff { return fail(header, Self.powerOffError) }
            if let error = faults.operationArrived(operation) { return fail(header, error) }
        }
        switch header.opcode {
        case FUSE_INIT.rawValue: initialize(header)
        case FUSE_LOOKUP.rawValue: lookUp(header)
        case FUSE_FORGET.rawValue, FUSE_BATCH_FORGET.rawValue, FUSE_INTERRUPT.rawValue: break
        case FUSE_GETATTR.rawValue, FUSE_SETATTR.rawValue:
            var out = fuse_attr_out()
            out.attr = attributes(of: header.nodeid)
            succeed(header, out)
        case FUSE_OPEN.rawValue:
            var out = fuse_open_out()
            // Second flag: FOPEN_PARALLEL_DIRECT_WRITES, which not every header knows.
            out.open_flags = UInt32(FOPEN_DIRECT_IO) | 1 << 6
            succeed(header, out)
        case FUSE_OPENDIR.rawValue: succeed(header, fuse_open_out())
        case FUSE_READDIR.rawValue, FUSE_RELEASE.rawValue, FUSE_RELEASEDIR.rawValue:
            send(header, error: 0, payloadCount: 0)
        case FUSE_STATFS.rawValue:
            var out = fuse_statfs_out()
            out.st.bsize = 4096
            out.st.frsize = 4096
            out.st.blocks = UInt64(disk.byteCount / 4096)
            out.st.namelen = 255
            succeed(header, out)
        case FUSE_READ.rawValue: read(header)
        case FUSE_WRITE.rawValue: write(header)
        case FUSE_FSYNC.rawValue:
            disk.sync()
            send(header, error: 0, payloadCount: 0)
        case FUSE_FALLOCATE.rawValue: allocate(header)
        case FUSE_LSEEK.rawValue: seek(header)
        default: fail(header, ENOSYS)
        }
    }

    private mutating func initialize(_ header: fuse_in_header) {
        let request: fuse_init_in = load(at: MemoryLayout<fuse_in_header>.size)
        var out = fuse_init_out()
        out.major = UInt32(FUSE_KERNEL_VERSION)
        out.minor = min(request.minor, UInt32(FUSE_KERNEL_MINOR_VERSION))
        let wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES
        out.flags = request.flags & UInt32(wanted)
        out.max_background = 128
        out.congestion_threshold = 96
        out.max_write = UInt32(Self.writeByteCountMaximum)
        out.max_pages = UInt16(Self.writeByteCountMaximum / 4096)
        out.time_gran = 1
        succeed(header, out)
    }

    private mutating func lookUp(_ header: fuse_in_header) {
        let start = MemoryLayout<fuse_in_header>.size
        let name = message[start..<Int(header.len)].prefix { $0 != 0 }
        guard String(decoding: name, as: UTF8.self) == "disk" else { return fail(header, ENOENT) }
        var out = fuse_entry_out()
        out.nodeid = Self.fileNode
        out.attr = attributes(of: Self.fileNode)
        succeed(header, out)
    }

    private func attributes(of node: UInt64) -> fuse_attr {
        var attributes = fuse_attr()
        attributes.ino = node
        attributes.nlink = 1
        attributes.blksize = 4096
        attributes.mtime = UInt64(changed.tv_sec)
        attributes.mtimensec = UInt32(changed.tv_nsec)
        attributes.ctime = attributes.mtime
        attributes.ctimensec = attributes.mtimensec
        guard node == Self.fileNode else {
            attributes.mode = S_IFDIR | 0o700
            return attributes
        }
        var status = stat()
        fstat(disk.current, &status)
        attributes.mode = S_IFREG | 0o600
        attributes.size = UInt64(disk.byteCount)
        attributes.blocks = UInt64(status.st_blocks)
        return attributes
    }

    private mutating func read(_ header: fuse_in_header) {
        let request: fuse_read_in = load(at: MemoryLayout<fuse_in_header>.size)
        let start = MemoryLayout<fuse_out_header>.size
        let wanted = min(Int(request.size), reply.count - start)
        let count = reply.withUnsafeMutableBytes {
            pread(disk.current, $0.baseAddress! + start, wanted, off_t(request.offset))
        }
        guard count >= 0 else { return fail(header, errno) }
        send(header, error: 0, payloadCount: count)
    }

    private mutating func write(_ header: fuse_in_header) {
        let request: fuse_write_in = load(at: MemoryLayout<fuse_in_header>.size)
        let start = MemoryLayout<fuse_in_header>.size + MemoryLayout<fuse_write_in>.size
        let count = Int(request.size)
        guard Int(request.offset) + count <= disk.byteCount else { return fail(header, EFBIG) }
        disk.write(Array(message[start..<start + count]), at: Int(request.offset))
        clock_gettime(CLOCK_REALTIME, &changed)
        var out = fuse_write_out()
        out.size = request.size
        succeed(header, out)
    }

    private mutating func allocate(_ header: fuse_in_header) {
        let request: fuse_fallocate_in = load(at: MemoryLayout<fuse_in_header>.size)
        let end = min(Int(request.offset + request.length), disk.byteCount)
        let range = min(Int(request.offset), end)..<end
        switch Int32(request.mode) & ~FALLOC_FL_KEEP_SIZE {
        case FALLOC_FL_PUNCH_HOLE: disk.zero(range, keepingAllocation: false)
        case FALLOC_FL_ZERO_RANGE: disk.zero(range, keepingAllocation: true)
        default: return fail(header, EOPNOTSUPP)
        }
        clock_gettime(CLOCK_REALTIME, &changed)
        send(header, error: 0, payloadCount: 0)
    }

    private mutating func seek(_ header: fuse_in_header) {
        let request: fuse_lseek_in = load(at: MemoryLayout<fuse_in_header>.size)
        let offset = off_t(request.offset)
        let found =
            request.whence == 3
            ? stillpoint_test_seek_data(disk.current, offset)
            : stillpoint_test_seek_hole(disk.current, offset)
        guard found >= 0 else { return fail(header, errno) }
        var out = fuse_lseek_out()
        out.offset = UInt64(found)
        succeed(header, out)
    }

    // MARK: Replies

    private mutating func succeed<Payload>(_ header: fuse_in_header, _ payload: Payload) {
        let start = MemoryLayout<fuse_out_header>.size
        withUnsafeBytes(of: payload) { bytes in
            reply.replaceSubrange(start..<start + bytes.count, with: bytes)
        }
        send(header, error: 0, payloadCount: MemoryLayout<Payload>.size)
    }

    private mutating func fail(_ header: fuse_in_header, _ error: Int32) {
        send(header, error: error, payloadCount: 0)
    }

    private mutating func send(_ header: fuse_in_header, error: Int32, payloadCount: Int) {
        let count = MemoryLayout<fuse_out_header>.size + payloadCount
        let out = fuse_out_header(len: UInt32(count), error: -error, unique: header.unique)
        reply.withUnsafeMutableBytes { $0.storeBytes(of: out, as: fuse_out_header.self) }
        // An interrupted request has nobody to take the reply (ENOENT): nothing to do then.
        _ = Glibc.write(connection, reply, count)
    }

    private func load<Value>(at offset: Int) -> Value {
        // The kernel's structures are plain integers: every bit pattern is a value of them.
        message.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Value.self) }
    }

    private static func nowMilliseconds() -> Int {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    }
}
