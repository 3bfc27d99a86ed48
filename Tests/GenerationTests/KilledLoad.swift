import Glibc
import Synchronization
import TestSupport

/// Writes random blocks over one connection until the service is gone.
final class KilledLoad: Sendable {
    private final class Record: Sendable {
        struct Blocks {
            var issued: Set<Int> = []
            var acknowledged: Set<Int> = []
            var writeCount = 0
        }

        let blocks = Mutex(Blocks())
    }

    private static let depth = 8
    private let record = Record()
    private let thread: Background<Void>

    init(_ harness: GenerationHarness, seed: UInt64) throws {
        let client = try harness.client()
        thread = Background { [record] in try Self.run(client, record, seed) }
    }

    private static func run(_ client: NBDClient, _ record: Record, _ seed: UInt64) throws {
        var generator = SeededGenerator(seed: seed)
        var inFlight: [UInt64: Int] = [:]
        while true {
            while inFlight.count < depth {
                let block = Int.random(in: 0..<16384, using: &generator)
                guard !inFlight.values.contains(block) else { continue }
                record.blocks.withLock { _ = $0.issued.insert(block) }
                let cookie = client.freshCookie()
                inFlight[cookie] = block
                try client.send(
                    NBDRequest(
                        .write, cookie: cookie, offset: UInt64(block) * 4096, length: 4096,
                        payload: generator.bytes(4096)))
            }
            let cookie = try client.receiveChunk().cookie
            guard let block = inFlight.removeValue(forKey: cookie) else { continue }
            record.blocks.withLock { blocks in
                blocks.acknowledged.insert(block)
                blocks.writeCount += 1
            }
        }
    }

    /// Returns when so many writes were acknowledged.
    func waitForWrites(_ count: Int) throws {
        let end = monotonicSeconds() + 120
        while record.blocks.withLock({ $0.writeCount }) < count {
            guard monotonicSeconds() < end else { throw TestFailure("the load makes no progress") }
            sched_yield()
        }
    }

    /// Returns when the connection has ended, which is how this load ends.
    func join() { _ = try? thread.value() }

    /// Blocks that may have been written to.
    var issued: Set<Int> { record.blocks.withLock { $0.issued } }
    /// Blocks that were written to.
    var acknowledged: Set<Int> { record.blocks.withLock { $0.acknowledged } }
}
