internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import RingIO
internal import SnapshotCore

/// The memory for data not yet stored, shared by the devices of a loop.
///
/// Preserved data is private: the memory is neither dumped nor, where the limit of locked memory
/// allows, swapped. Its pages are touched when storage lags behind, and go back to the kernel when
/// no device of the loop has a snapshot any more.
final class LoopPreservation {
    /// Blocks in memory at a time: 64 MiB.
    static let bufferCount = 16384
    private static let byteCount = bufferCount * 4096
    /// What one turn gives back: some 50 us of work.
    private static let bytesPerSlice = 1 << 20

    let buffers = BlockBuffers(capacity: bufferCount)
    private let memory: UnsafeMutableRawPointer
    private var devices: [Device] = []
    /// Pages before it are with the kernel again, those from it on are still to be given back.
    private var givenBackByteCount = byteCount

    private init() {
        let mapping = mmap(
            nil, Self.byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            preconditionFailure("no address space for 64 MiB of block buffers")
        }
        madvise(mapping, Self.byteCount, MADV_DONTDUMP)
        // Without the right to lock memory, swap is the operator's decision.
        _ = cl_lock_on_fault(mapping, Self.byteCount)
        memory = mapping
    }

    deinit { munmap(memory, Self.byteCount) }

    /// The loop's own; made at first use.
    static func of(_ loop: EventLoop) -> LoopPreservation {
        if let existing = loop.loopLocal as? LoopPreservation { return existing }
        let made = LoopPreservation()
        loop.loopLocal = made
        return made
    }

    /// The block's 4096 bytes.
    func address(of buffer: BufferIndex) -> UnsafeMutableRawPointer {
        memory + Int(buffer.rawValue) * 4096
    }

    func deviceAdded(_ device: Device) { devices.append(device) }

    func deviceRemoved(_ device: Device) {
        devices.removeAll { $0 === device }
        guard givenBackByteCount < Self.byteCount else { return }
        if let other = devices.first(where: { !$0.isClosing }) {
            other.callAtEndOfTurn()
        } else if buffers.freeCount == buffers.capacity,
            !devices.contains(where: \.hasSnapshots)
        {
            while givenBackByteCount < Self.byteCount { giveSliceBack() }
        }
    }

    /// A snapshot of the device is gone: if it was the loop's last, the memory goes back, a slice
    /// at the end of each turn.
    func snapshotGone(of device: Device) {
        guard !devices.contains(where: \.hasSnapshots) else { return }
        givenBackByteCount = 0
        device.callAtEndOfTurn()
    }

    /// Continues to give buffers back, unless there are snapshots again. Buffers of the last one
    /// may still be read or written; the turn in which they are freed ends here too.
    func turnEnded(of device: Device) {
        guard givenBackByteCount < Self.byteCount, buffers.freeCount == buffers.capacity else {
            return
        }
        guard !devices.contains(where: \.hasSnapshots) else {
            givenBackByteCount = Self.byteCount
            return
        }
        giveSliceBack()
        // A closing device may be gone by the next turn: the remaining ones continue.
        if givenBackByteCount < Self.byteCount, !device.isClosing { device.callAtEndOfTurn() }
    }

    private func giveSliceBack() {
        let start = memory + givenBackByteCount
        // Locked pages need the newer call; older kernels drop only what is not locked.
        if cl_drop_pages(start, Self.bytesPerSlice) != 0 {
            madvise(start, Self.bytesPerSlice, MADV_DONTNEED)
        }
        givenBackByteCount += Self.bytesPerSlice
    }

    /// Buffers may have become free: those who wait for one try again at the end of the turn.
    func wakeWaiting(except device: Device) {
        for other in devices where other !== device && other.engine.waitsForBuffers {
            other.callAtEndOfTurn()
        }
    }
}
