package import BlockModel
internal import CLinux
package import CopyOnWrite
internal import Glibc
internal import Host
internal import Origins

// What a source of difference storage is made of: a file, a block device or memory. All calls may
// block, so they run on the blocking pool or on a thread of their own; each returns what the kernel
// said and decides nothing.

/// Where the bytes of a source are, for the loops.
package enum StorageAccess: Sendable {
    case ring(descriptor: Int32)
    case inline(descriptor: Int32)
    case memory(address: UInt)
}

/// The calls that a source makes of its medium. Errors are errno values, 0 means done.
package protocol StorageMedium: Sendable {
    var access: StorageAccess { get }
    /// What was stored stays readable for others when the source closes: it must be erased before.
    var outlivesUs: Bool { get }
    /// Making memory of an extent resident is worth it.
    var isPopulated: Bool { get }
    /// What the filesystem has; nil when it does not report it, and for what does not grow.
    func room() -> FilesystemRoom?
    /// Reserves the bytes.
    func allocate(_ range: ByteRange) -> Int32
    /// Gives back what an `allocate` that failed may have left; `isTail`: nothing follows it.
    func giveBack(_ range: ByteRange, isTail: Bool)
    /// Drops or overwrites the bytes.
    func erase(_ range: ByteRange) -> Int32
    /// Makes the bytes resident.
    func populate(_ range: ByteRange)
    /// The last call.
    func close()
}

/// An unnamed file.
struct FileMedium: StorageMedium {
    let descriptor: Int32
    /// On tmpfs, reached by plain calls.
    let isInline: Bool

    /// Bytes that tmpfs allocates at a time, some 30 us: it does so page by page with the file
    /// locked, and a loop that stores blocks meanwhile would wait.
    private static let pagedPiece: UInt64 = 128 << 10

    var access: StorageAccess {
        isInline ? .inline(descriptor: descriptor) : .ring(descriptor: descriptor)
    }
    /// The file ends with its last descriptor.
    var outlivesUs: Bool { false }
    var isPopulated: Bool { false }

    func room() -> FilesystemRoom? { Self.room(of: descriptor) }

    static func room(of descriptor: Int32) -> FilesystemRoom? {
        var space = statvfs()
        // A filesystem without a size of its own does not report it.
        guard fstatvfs(descriptor, &space) == 0, space.f_blocks > 0 else { return nil }
        return FilesystemRoom(
            free: UInt64(space.f_bavail) * UInt64(space.f_frsize),
            size: UInt64(space.f_blocks) * UInt64(space.f_frsize))
    }

    func allocate(_ range: ByteRange) -> Int32 {
        let piece = isInline ? Self.pagedPiece : range.length
        var done: UInt64 = 0
        while done < range.length {
            let length = min(piece, range.length - done)
            let result = posix_fallocate(descriptor, off_t(range.offset + done), off_t(length))
            if result == EINTR { continue }
            guard result == 0 else { return result }
            done += length
            sched_yield()
        }
        return 0
    }

    func giveBack(_ range: ByteRange, isTail: Bool) {
        // What cannot be given back now goes with the file.
        if isTail {
            _ = ftruncate(descriptor, off_t(range.offset))
        } else {
            _ = cl_punch_hole(descriptor, range.offset, range.length)
        }
    }

    func erase(_ range: ByteRange) -> Int32 {
        cl_punch_hole(descriptor, range.offset, range.length) == 0 ? 0 : errno
    }

    func populate(_ range: ByteRange) {}

    func close() { Glibc.close(descriptor) }
}

/// A block device as it is.
struct BlockDeviceMedium: StorageMedium {
    let descriptor: Int32

    var access: StorageAccess { .ring(descriptor: descriptor) }
    var outlivesUs: Bool { true }
    var isPopulated: Bool { false }

    func room() -> FilesystemRoom? { nil }
    func allocate(_ range: ByteRange) -> Int32 { 0 }
    func giveBack(_ range: ByteRange, isTail: Bool) {}

    /// A zeroing unmap where the device has it, else zeroes.
    func erase(_ range: ByteRange) -> Int32 {
        if cl_punch_hole(descriptor, range.offset, range.length) == 0 { return 0 }
        var done: UInt64 = 0
        while done < range.length {
            let piece = min(range.length - done, UInt64(ZeroMemory.byteCount))
            let result = pwrite(
                descriptor, ZeroMemory.address, Int(piece), off_t(range.offset + done))
            if result > 0 {
                done += UInt64(result)
            } else if result == 0 {
                return EIO
            } else if errno != EINTR {
                return errno
            }
        }
        return 0
    }

    func populate(_ range: ByteRange) {}

    func close() { Glibc.close(descriptor) }
}

/// Memory that is neither dumped nor swapped, resident only where used.
struct MemoryMedium: StorageMedium {
    private let address: UInt
    private let byteCount: Int

    /// Bytes that are made resident at a time, some 60 us: then a loop that shares the processor
    /// gets its turn.
    private static let residencePiece = 256 << 10

    init(byteCount: UInt64) throws(AttachError) {
        self.byteCount = Int(byteCount)
        let mapping = mmap(
            nil, self.byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            throw AttachError(
                .failed, "storage memory:\(byteCount): \(SystemFile.errorText(errno))")
        }
        guard madvise(mapping, self.byteCount, MADV_DONTDUMP) == 0,
            cl_lock_on_fault(mapping, self.byteCount) == 0
        else {
            let failure = errno
            munmap(mapping, self.byteCount)
            throw AttachError(
                .failed,
                "storage memory:\(byteCount) cannot be kept out of swap: "
                    + "\(SystemFile.errorText(failure)); raise the limit of locked memory")
        }
        address = UInt(bitPattern: mapping)
    }

    var access: StorageAccess { .memory(address: address) }
    var outlivesUs: Bool { false }
    var isPopulated: Bool { true }

    func room() -> FilesystemRoom? { nil }
    func allocate(_ range: ByteRange) -> Int32 { 0 }
    func giveBack(_ range: ByteRange, isTail: Bool) {}

    func erase(_ range: ByteRange) -> Int32 {
        let start = place(of: range)
        // It is locked in memory; older kernels drop only what is not.
        if cl_drop_pages(start, Int(range.length)) == 0 { return 0 }
        return madvise(start, Int(range.length), MADV_DONTNEED) == 0 ? 0 : overwrite(range)
    }

    /// Pages that the kernel does not take back are cleared.
    private func overwrite(_ range: ByteRange) -> Int32 {
        memset(place(of: range), 0, Int(range.length))
        return 0
    }

    /// Large pages are not asked for: compaction for them took 7 ms per extent of fragmented
    /// memory.
    func populate(_ range: ByteRange) {
        let start = place(of: range)
        // Where it is refused, faults at first use do.
        for offset in stride(from: 0, to: Int(range.length), by: Self.residencePiece) {
            _ = cl_populate(start + offset, min(Self.residencePiece, Int(range.length) - offset))
            sched_yield()
        }
    }

    func close() {
        guard let start = UnsafeMutableRawPointer(bitPattern: address) else {
            preconditionFailure("memory storage has an address")
        }
        munmap(start, byteCount)
    }

    private func place(of range: ByteRange) -> UnsafeMutableRawPointer {
        guard let start = UnsafeMutableRawPointer(bitPattern: address + UInt(range.offset)) else {
            preconditionFailure("memory storage has an address")
        }
        return start
    }
}
