import Glibc
import Synchronization
import TestSupport

/// Overwrites a range once, in order, and measures the longest wait for a reply.
final class TimedWriter: Sendable {
    private let longest = Atomic<UInt64>(0)
    private let thread: Mutex<Background<Void>?> = Mutex(nil)

    /// Starts: `byteCount` bytes of one value in pieces, two requests in flight.
    init(
        _ harness: SnapshotHarness, _ export: String, value: UInt8, byteCount: Int,
        pieceByteCount: Int = 128 << 10
    ) throws {
        let clients = try (0..<2).map { _ in try harness.client(export) }
        thread.withLock { [self] thread in
            thread = Background { [self] in
                let piece = [UInt8](repeating: value, count: pieceByteCount)
                var offset = 0
                while offset < byteCount {
                    let began = monotonicNanoseconds()
                    for client in clients where offset < byteCount {
                        try client.send(
                            NBDRequest(
                                .write, cookie: 7, offset: UInt64(offset),
                                length: UInt64(piece.count), payload: piece))
                        offset += piece.count
                    }
                    for client in clients {
                        let chunk = try client.receiveChunk()
                        if let error = chunk.error { throw TestFailure("write: error \(error)") }
                        let took = monotonicNanoseconds() - began
                        longest.max(took, ordering: .relaxed)
                    }
                }
            }
        }
    }

    /// Waits for its end, which must be without errors; returns the longest wait in seconds.
    func finish() throws -> Double {
        try thread.withLock { $0 }?.value()
        return Double(longest.load(ordering: .relaxed)) / 1e9
    }
}

/// The error of every one of a number of reads over the whole of an export; nil where one succeeds.
func readErrors(_ harness: SnapshotHarness, _ export: String) throws -> [UInt32?] {
    let client = try harness.client(export)
    return try stride(from: 0, to: client.byteCount, by: 256 << 10).map { offset in
        try client.perform(NBDRequest(.read, offset: offset, length: 4096)).error
    }
}
