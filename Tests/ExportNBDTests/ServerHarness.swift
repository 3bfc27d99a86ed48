import BlockModel
import Foundation
import RingIO
import Synchronization
import TestSupport
import Testing

@testable import ExportNBD

/// Exports of the tests.
final class TestDirectory: ExportDirectory {
    let exports = Mutex<[ExportDescription]>([])

    func allExports() -> [ExportDescription] { exports.withLock { $0 } }

    func export(named name: String) -> ExportDescription? {
        exports.withLock { exports in
            name.isEmpty && exports.count == 1
                ? exports.first : exports.first { $0.name == name }
        }
    }
}

/// A server over devices in memory, on loops of its own.
final class ServerHarness: Sendable {
    static let byteCount = 4 << 20

    let directory = TestDirectory()
    let threads: [LoopThread]
    let server: NBDServer
    let socketPath: String
    private let files: TemporaryDirectory

    init(
        loopCount: Int = 1, loop: LoopConfiguration = LoopConfiguration(),
        configure: (inout NBDServerConfiguration) -> Void = { _ in }
    ) async throws {
        files = try TemporaryDirectory()
        socketPath = files.path("nbd.sock")
        threads = try (0..<loopCount).map { try LoopThread(index: $0, configuration: loop) }
        var configuration = NBDServerConfiguration(endpoints: [.unix(path: socketPath)])
        configure(&configuration)
        server = NBDServer(directory: directory, loops: threads, configuration: configuration)
        try await server.start()
    }

    /// Adds an export on the last loop; `size` may pretend more than there is.
    func add(
        _ name: String = "disk", size: UInt64 = UInt64(ServerHarness.byteCount),
        alignment: UInt64 = 1, isReadOnly: Bool = false,
        bases: ExportBases.View? = nil
    ) async throws -> TestDevice {
        let thread = threads[threads.count - 1]
        let target = try #require(
            await thread.mailbox.run { loop in
                LoopConfined(
                    MemoryTarget(
                        loop: loop, size: size, realByteCount: ServerHarness.byteCount,
                        alignment: alignment), on: loop)
            })
        directory.exports.withLock {
            $0.append(
                ExportDescription(
                    name: name, summary: "memory of the tests", size: size,
                    isReadOnly: isReadOnly, isRotational: false, canDiscard: true,
                    bases: bases, loop: thread,
                    target: target.map { $0 as BlockTarget }))
        }
        return TestDevice(thread: thread, target: target)
    }

    func connect(
        _ headers: NBDClient.Headers = .structured, export: String = "disk",
        contexts: [String] = []
    ) throws -> NBDClient {
        try NBDClient(
            .unix(path: socketPath), export: export, headers: headers, contexts: contexts)
    }

    /// Waits until `count` connections are open.
    func waitForConnections(_ count: Int) async throws {
        try await waitUntil { self.server.connections == count }
    }

    /// Stops the server and checks that the loops have everything back.
    func stop() async {
        await server.stop()
        #expect(server.connections == 0)
        for thread in threads {
            let left = await thread.mailbox.run { loop in
                (loop.requests.leasedCount, loop.buffers.capacityBytes - loop.buffers.freeBytes)
            }
            #expect(left?.0 == 0, "requests are given back")
            #expect(left?.1 == 0, "buffers are given back")
            thread.stopAndJoin()
        }
    }
}

/// A device of the tests and its loop.
struct TestDevice: Sendable {
    let thread: LoopThread
    let target: LoopConfined<MemoryTarget>

    /// Does something with the target on its loop.
    @discardableResult
    func with<Value: Sendable>(
        _ body: @escaping @Sendable (MemoryTarget) -> Value
    ) async throws -> Value {
        let target = target
        return try #require(await thread.mailbox.run { loop in body(target.get(on: loop)) })
    }

    /// Waits until the device holds `count` requests.
    func waitForHeld(_ count: Int) async throws {
        try await waitUntil { try await self.with { $0.held.count } == count }
    }

    func bytes(_ range: Range<Int>) async throws -> [UInt8] {
        try await with { target in
            Array(
                UnsafeRawBufferPointer(start: target.memory, count: ServerHarness.byteCount)[range])
        }
    }
}

/// Waits for a condition that another thread brings about; the limit only detects hangs.
func waitUntil(
    sourceLocation: SourceLocation = #_sourceLocation, _ condition: () async throws -> Bool
) async throws {
    // Each look may wait long for a thread of the pool.
    let end = ContinuousClock.now + .seconds(600)
    while try await !condition() {
        guard ContinuousClock.now < end else {
            Issue.record("it does not happen", sourceLocation: sourceLocation)
            throw CancellationError()
        }
        await Task.yield()
    }
}
