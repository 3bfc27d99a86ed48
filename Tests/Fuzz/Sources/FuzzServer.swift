import BlockModel
import Glibc
import RingIO
import Synchronization

@testable import ExportNBD

/// A server over memory in this process.
final class FuzzServer: Sendable {
    static let shared = FuzzServer()
    static let byteCount = 1 << 20

    let path: String
    private let server: NBDServer
    private let exports: [String: ExportDescription]

    private init() {
        path = fuzzPath("server.sock")
        let box = Mutex<(NBDServer, [String: ExportDescription])?>(nil)
        let path = path
        let done = Semaphore()
        Task {
            do {
                let made = try await Self.start(path)
                box.withLock { $0 = made }
            } catch { fatalError("no server: \(error)") }
            done.signal()
        }
        done.wait()
        (server, exports) = box.withLock { $0! }
    }

    private static func start(
        _ path: String
    ) async throws -> (NBDServer, [String: ExportDescription]) {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 64 << 20
        let loop = try LoopThread(index: 0, configuration: configuration)
        var exports: [String: ExportDescription] = [:]
        let generation = Generation(id: UniqueID(high: 1, low: 2))
        let bases = ExportBases(
            [
                .init(
                    name: "monday",
                    base: TrackingBase(
                        generation: generation, epoch: .first, size: UInt64(byteCount)))
            ], generation: generation)
        for name in ["disk", "secretdisk", "secretdisk@monday"] {
            let isReadOnly = name.contains("@")
            let target = await loop.mailbox.run { loop in
                LoopConfined(
                    MemoryTarget(
                        loop: loop, size: UInt64(byteCount), realByteCount: byteCount,
                        alignment: isReadOnly ? 4096 : 512), on: loop)
            }
            exports[name] = ExportDescription(
                name: name, summary: "memory", size: UInt64(byteCount), isReadOnly: isReadOnly,
                isRotational: isReadOnly, canDiscard: !isReadOnly,
                bases: bases.all, loop: loop,
                target: target!.map { $0 as BlockTarget })
        }
        let server = NBDServer(
            directory: FuzzDirectory(Array(exports.values)), loops: [loop],
            configuration: NBDServerConfiguration(endpoints: [.unix(path: path)]))
        try await server.start()
        return (server, exports)
    }

    func export(named name: String) -> ExportDescription { exports[name]! }

    /// Waits until no connection is open.
    func waitUntilIdle() {
        var turns = 0
        while server.connections > 0 {
            turns += 1
            precondition(turns < 50_000_000, "a connection never ends")
            sched_yield()
        }
    }

    /// A connected socket.
    func connect() -> Int32 {
        let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
        let result = withUnsafePointer(to: address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
            }
        }
        precondition(result == 0, "the server does not accept any more")
        return descriptor
    }
}
