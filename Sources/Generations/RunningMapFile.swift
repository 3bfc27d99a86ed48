internal import CLinux
internal import ChangeTracking
internal import Glibc
internal import RingIO
internal import Synchronization

// The file behind a change map in use: in the runtime directory, so that it outlives a killed
// service, or without a name where nothing needs to outlive anything.
//
// Invariants
// - The file is locked (flock) as long as the object lives: one service uses it.
// - A stale page holds entries of an earlier generation, or of an attach that was killed. It is
//   emptied before it is reserved again.

/// The file behind a change map in use; see the head of this file.
package final class RunningMapFile: Sendable {
    /// Nil: it has no name.
    let path: String?
    let descriptor: Int32
    private let state = Mutex(State())

    /// Who empties a page.
    private enum Claim { case clean, ours, taken }

    private struct State {
        /// One bit for each page.
        var stale: [UInt64] = []
        /// Stale pages that a thread is emptying, and who waits for one of them.
        var beingEmptied: Set<UInt64> = []
        var waiters: [(page: UInt64, ended: RingIO.Semaphore)] = []

        func isStale(_ page: UInt64) -> Bool {
            let index = Int(page / 64)
            return index < stale.count && stale[index] & (1 << (page % 64)) != 0
        }

        /// The page is empty, or could not be emptied; returns who waited for it.
        mutating func emptied(_ page: UInt64, _ isEmpty: Bool) -> [RingIO.Semaphore] {
            if isEmpty { stale[Int(page / 64)] &= ~(1 << (page % 64)) }
            beingEmptied.remove(page)
            let ended = waiters.filter { $0.page == page }.map(\.ended)
            waiters.removeAll { $0.page == page }
            return ended
        }
    }

    /// Takes over an open and locked file.
    package init(path: String?, descriptor: Int32) {
        self.path = path
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }

    /// A file without a name, for a device whose generation is not kept.
    static func unnamed() -> RunningMapFile? {
        let descriptor = cl_memory_file("change-map")
        return descriptor < 0 ? nil : RunningMapFile(path: nil, descriptor: descriptor)
    }

    // MARK: Stale pages

    /// Every page whose bit is set in `words` is stale from now on. Runs on the loop when a
    /// generation begins: the lock is held by nobody who waits for the disk.
    package func becomeStale(_ words: UnsafeBufferPointer<UInt64>) {
        state.withLock { state in
            if state.stale.count < words.count {
                state.stale += Array(repeating: 0, count: words.count - state.stale.count)
            }
            for (index, word) in words.enumerated() { state.stale[index] |= word }
        }
    }

    /// Empties the page if it is stale; false when that failed. Blocks, also while another thread
    /// empties it: after that it may hold entries of now.
    package func emptyIfStale(page: UInt64) -> Bool {
        while true {
            let ended = RingIO.Semaphore()
            let claim = state.withLock { state -> Claim in
                guard state.isStale(page) else { return .clean }
                guard state.beingEmptied.insert(page).inserted else {
                    state.waiters.append((page, ended))
                    return .taken
                }
                return .ours
            }
            switch claim {
            case .clean: return true
            case .taken: ended.wait()
            case .ours:
                let isEmpty = punch(page: page)
                let failure = errno
                let waiters = state.withLock { $0.emptied(page, isEmpty) }
                for waiter in waiters { waiter.signal() }
                errno = failure
                return isEmpty
            }
        }
    }

    /// Gives the memory of all stale pages back, page by page; what fails stays stale.
    package func emptyStalePages() {
        var index = 0
        while true {
            let word = state.withLock { index < $0.stale.count ? $0.stale[index] : nil }
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
package func writeAll(_ bytes: [UInt8], to descriptor: Int32, at offset: Int) -> Bool {
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
