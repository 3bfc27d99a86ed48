package import BlockModel
package import CopyPlanning
internal import Synchronization

/// What is read while filesystems are frozen, kept until they are thawed, so that a slow target does not keep
/// them frozen: in memory, then in a spill file. What fits in neither goes to the target at once. None of
/// these lies on a frozen filesystem.
package final class HeldBlocks: CopySink {
    private struct State {
        var pieces: [(offset: UInt64, bytes: [UInt8])] = []
        var spilled: [SpillFile.Piece] = []
        var zeroes: [ByteRange] = []
        var byteCount = 0
    }

    private let byteCountMax: Int
    private let spill: SpillFile?
    private let target: any CopySink
    private let state = Mutex(State())

    /// Keeps at most so many bytes in memory, what is beyond in `spill` as far as that has room.
    package init(byteCountMax: Int, spill: SpillFile? = nil, beyond target: any CopySink) {
        self.byteCountMax = byteCountMax
        self.spill = spill
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
        if isRoom {
            let kept = [UInt8](UnsafeRawBufferPointer(start: bytes, count: byteCount))
            state.withLock { $0.pieces.append((offset, kept)) }
        } else if let piece = spill?.keep(bytes, byteCount, for: offset) {
            state.withLock { $0.spilled.append(piece) }
        } else {
            try target.write(bytes, byteCount, at: offset)
        }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        state.withLock { $0.zeroes.append(range) }
    }

    package func drain() throws(CopyError) {}

    /// Gives all of it to the target, and keeps nothing.
    package func flush() throws(CopyError) {
        let taken = state.withLock { state in
            defer { state = State() }
            return state
        }
        for range in taken.zeroes { try target.zero(range) }
        for (offset, bytes) in taken.pieces { try Self.give(bytes, at: offset, to: target) }
        if let spill {
            for piece in taken.spilled {
                try Self.give(try spill.bytes(of: piece), at: piece.offset, to: target)
            }
        }
        try target.drain()
    }

    private static func give(
        _ bytes: [UInt8], at offset: UInt64, to target: any CopySink
    ) throws(CopyError) {
        let outcome = bytes.withUnsafeBytes { buffer -> Result<Void, CopyError> in
            guard let start = buffer.baseAddress else { return .success(()) }
            do throws(CopyError) {
                return .success(try target.write(start, buffer.count, at: offset))
            } catch { return .failure(error) }
        }
        try outcome.get()
    }
}
