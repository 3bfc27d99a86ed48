internal import CLinux
internal import ChangeTracking
internal import Glibc
internal import Synchronization

// The file behind a change map in use: in the runtime directory, so that it outlives a killed
// service, or without a name where nothing needs to outlive anything.
//
// Invariants
// - The file is locked (flock) as long as the object lives: one service uses it.
// - A stale page holds entries of an earlier generation, or of an attach that was killed. It is
//   emptied before it is reserved anew.

final class RunningMapFile: Sendable {
    /// Nil: it has no name.
    let path: String?
    let descriptor: Int32
    private let stalePages = Mutex<[UInt64]>([])

    /// Takes over an open and locked file.
    init(path: String?, descriptor: Int32) {
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    /// A file without a name, for a device whose history nobody asked to keep.
    static func unnamed() -> RunningMapFile? {
        let descriptor = cl_memory_file("change-map")
        return descriptor < 0 ? nil : RunningMapFile(path: nil, descriptor: descriptor)
    }

    // MARK: Stale pages

    /// Every page whose bit is set in `words` is stale from now on. Runs on the loop when a
    /// generation begins; others hold the lock for one page at a time.
    func becomeStale(_ words: UnsafeBufferPointer<UInt64>) {
        stalePages.withLock { stale in
            if stale.count < words.count {
                stale += Array(repeating: 0, count: words.count - stale.count)
            }
            for (index, word) in words.enumerated() { stale[index] |= word }
        }
    }

    /// Empties the page if it is stale; false when that failed.
    func emptyIfStale(page: UInt64) -> Bool {
        stalePages.withLock { stale in
            let index = Int(page / 64)
            guard index < stale.count, stale[index] & (1 << (page % 64)) != 0 else { return true }
            guard punch(page: page) else { return false }
            stale[index] &= ~(1 << (page % 64))
            return true
        }
    }

    /// Gives the memory of all stale pages back, page by page; what fails stays stale.
    func emptyStalePages() {
        var index = 0
        while true {
            let word = stalePages.withLock { index < $0.count ? $0[index] : nil }
            guard var rest = word else { return }
            while rest != 0 {
                let bit = rest.trailingZeroBitCount
                rest &= rest - 1
                // A page that stays stale is emptied when it is wanted.
                _ = emptyIfStale(page: UInt64(index * 64 + bit))
            }
            index += 1
        }
    }

    private func punch(page: UInt64) -> Bool {
        let offset = MapLayout.entriesByteOffset + Int(page) * MapLayout.pageByteCount
        if cl_punch_hole(descriptor, UInt64(offset), UInt64(MapLayout.pageByteCount)) == 0 {
            return true
        }
        // Filesystems without holes: zeroes serve as well.
        return writeAll(
            [UInt8](repeating: 0, count: MapLayout.pageByteCount), to: descriptor, at: offset)
    }
}

/// Writes all bytes at an offset; false with errno when that failed.
func writeAll(_ bytes: [UInt8], to descriptor: Int32, at offset: Int) -> Bool {
    var done = 0
    while done < bytes.count {
        let result = bytes.withUnsafeBytes { buffer in
            pwrite(
                descriptor, buffer.baseAddress.unsafelyUnwrapped + done, buffer.count - done,
                off_t(offset + done))
        }
        if result < 0 && errno == EINTR { continue }
        guard result > 0 else {
            if result == 0 { errno = ENOSPC }
            return false
        }
        done += result
    }
    return true
}

/// Reads up to `count` bytes at an offset, fewer at the end of the file; nil with errno when that
/// failed.
func readBytes(_ count: Int, of descriptor: Int32, at offset: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
        let result = bytes.withUnsafeMutableBytes { buffer in
            pread(
                descriptor, buffer.baseAddress.unsafelyUnwrapped + done, count - done,
                off_t(offset + done))
        }
        if result < 0 && errno == EINTR { continue }
        guard result >= 0 else { return nil }
        if result == 0 { break }
        done += result
    }
    bytes.removeLast(count - done)
    return bytes
}
