internal import BlockModel
internal import CLinux

// The constants of the FUSE protocol (linux/fuse.h) that an export of one file needs.

/// Numbers of the FUSE protocol.
enum Fuse {
    /// Most bytes of a read or write.
    static let dataByteCountMax = 1 << 20
    /// Bytes before the payload of a write.
    static let writeHeadByteCount =
        MemoryLayout<fuse_in_header>.size + MemoryLayout<fuse_write_in>.size
    /// Most bytes of a message that carries no payload; names are at most 255 bytes long.
    static let headByteCountMax = 512
    static let outHeaderByteCount = MemoryLayout<fuse_out_header>.size
    /// The minor version whose structures are spoken here.
    static let minorVersion: UInt32 = 38

    static let rootNode: UInt64 = 1
    static let fileNode: UInt64 = 2

    /// What is asked for at INIT. Direct I/O is asynchronous, several requests at a time, up to
    /// 1 MiB each.
    static let initFlags = UInt32(
        FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_ABORT_ERROR)
    /// Asked for in the second half of the flags: what was read and not answered can be sent again
    /// (FUSE_HAS_RESEND, Linux 6.9).
    static let initFlags2 = UInt32(1 << (39 - 32))
    static let pageCountMax = UInt16(dataByteCountMax / 4096)
    /// Requests of the loop device under way at a time: its queue is 128 deep.
    static let backgroundCountMax: UInt16 = 128
    /// Seconds for which the kernel may cache the name of the file: practically forever.
    static let nameSeconds: UInt64 = 1 << 30
}

/// What the kernel asks for. What is not named here is answered with ENOSYS.
enum FuseOperation: UInt32 {
    case lookup = 1
    case forget = 2
    case getAttributes = 3
    case setAttributes = 4
    case open = 14
    case read = 15
    case write = 16
    case statistics = 17
    case release = 18
    case synchronize = 20
    case flush = 25
    case initialize = 26
    case openDirectory = 27
    case readDirectory = 28
    case releaseDirectory = 29
    case synchronizeDirectory = 30
    case access = 34
    case interrupt = 36
    case destroy = 38
    case batchForget = 42
    case allocate = 43
    case seek = 46
    case extendedAttributes = 52

    /// The kernel waits for no answer.
    var isUnanswered: Bool {
        switch self {
        case .forget, .batchForget, .interrupt: true
        case .lookup, .getAttributes, .setAttributes, .open, .read, .write, .statistics, .release,
            .synchronize, .flush, .initialize, .openDirectory, .readDirectory, .releaseDirectory,
            .synchronizeDirectory, .access, .destroy, .allocate, .seek, .extendedAttributes:
            false
        }
    }
}

/// A message of the kernel: its head lies in one piece of memory, the payload of a write elsewhere.
struct FuseMessage {
    let head: UnsafeRawPointer
    let header: fuse_in_header
    /// Bytes behind the header, the payload of a write included.
    let bodyByteCount: Int

    /// Nil when `byteCount` bytes that were received are no message.
    init?(_ head: UnsafeRawPointer, byteCount: Int) {
        guard byteCount >= MemoryLayout<fuse_in_header>.size else { return nil }
        header = head.loadUnaligned(as: fuse_in_header.self)
        guard Int(header.len) == byteCount else { return nil }
        self.head = head
        bodyByteCount = byteCount - MemoryLayout<fuse_in_header>.size
    }

    /// The structure behind the header; nil when the message is too short for it.
    func body<Body: BitwiseCopyable>(_ type: Body.Type) -> Body? {
        guard bodyByteCount >= MemoryLayout<Body>.size,
            bodyByteCount <= Fuse.headByteCountMax || type == fuse_write_in.self
        else { return nil }
        return (head + MemoryLayout<fuse_in_header>.size).loadUnaligned(as: type)
    }

    /// True when the message is this name, as LOOKUP has it.
    func isName(_ name: [UInt8]) -> Bool {
        guard bodyByteCount == name.count + 1, bodyByteCount < 300 else { return false }
        let bytes = UnsafeRawBufferPointer(
            start: head + MemoryLayout<fuse_in_header>.size, count: name.count + 1)
        return bytes[name.count] == 0 && bytes.prefix(name.count).elementsEqual(name)
    }
}
