package import BlockModel
package import CopyPlanning
internal import Synchronization

/// What is read while filesystems are frozen, kept in memory until they are thawed, so that a slow
/// target does not keep them frozen. What does not fit goes to the target at once: it lies on none
/// of the frozen filesystems.
package final class HeldBlocks: CopySink {
    private struct State {
        var pieces: [(offset: UInt64, bytes: [UInt8])] = []
        var zeroes: [ByteRange] = []
        var byteCount = 0
    }

    private let byteCountMax: Int
    private let target: any CopySink
    private let state = Mutex(State())

    /// Keeps at most so many bytes.
    package init(byteCountMax: Int, beyond target: any CopySink) {
        self.byteCountMax = byteCountMax
        self.target = target
    }

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        let isRoom = state.withLock { state in
            guard state.byteCount + byteCount <= byteCountMax else { return false }
            state.byteCount += byteCount
            return true
        }
        guard isRoom else { return try target.write(bytes, byteCount, at: offset) }
        let kept = [UInt8](UnsafeRawBufferPointer(start: bytes, count: byteCount))
        state.withLock { $0.pieces.append((offset, kept)) }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        state.withLock { $0.zeroes.append(range) }
    }

    package func drain() throws(CopyError) {}

    /// Gives all of it to the target, and keeps nothing.
    package func flush() throws(CopyError) {
        let (pieces, zeroes) = state.withLock { state in
            defer { state = State() }
            return (state.pieces, state.zeroes)
        }
        for range in zeroes { try target.zero(range) }
        for (offset, bytes) in pieces {
            let outcome = bytes.withUnsafeBytes { buffer -> Result<Void, CopyError> in
                guard let start = buffer.baseAddress else { return .success(()) }
                do throws(CopyError) {
                    return .success(try target.write(start, buffer.count, at: offset))
                } catch { return .failure(error) }
            }
            try outcome.get()
        }
        try target.drain()
    }
}
