internal import CLinux
internal import CopyOnWrite
internal import Glibc
internal import RingIO
internal import SnapshotCore

/// The memory for data not yet stored, shared by the devices of a loop.
///
/// Preserved data is private: the memory is neither dumped nor, where the limit of locked memory
/// allows, swapped.
final class LoopPreservation {
    /// Blocks in memory at a time: 64 MiB.
    static let bufferCount = 16384

    let buffers = BlockBuffers(capacity: bufferCount)
    private let memory: UnsafeMutableRawPointer
    private var devices: [Device] = []

    private init() {
        let byteCount = Self.bufferCount * 4096
        let mapping = mmap(
            nil, byteCount, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            preconditionFailure("no address space for 64 MiB of block buffers")
        }
        madvise(mapping, byteCount, MADV_DONTDUMP)
        // Without the right to lock memory, swap is the operator's decision.
        _ = cl_lock_on_fault(mapping, byteCount)
        memory = mapping
    }

    deinit { munmap(memory, Self.bufferCount * 4096) }

    /// The loop's own; made at first use.
    static func of(_ loop: EventLoop) -> LoopPreservation {
        if let existing = loop.companion as? LoopPreservation { return existing }
        let made = LoopPreservation()
        loop.companion = made
        return made
    }

    /// The block's 4096 bytes.
    func address(of buffer: BufferIndex) -> UnsafeMutableRawPointer {
        memory + Int(buffer.rawValue) * 4096
    }

    func deviceAdded(_ device: Device) { devices.append(device) }

    func deviceRemoved(_ device: Device) { devices.removeAll { $0 === device } }

    /// Buffers may have become free: those who wait for one try again at the end of the turn.
    func wakeWaiting(except device: Device) {
        for other in devices where other !== device && other.engine.waitsForBuffers {
            other.callAtEndOfTurn()
        }
    }
}
