internal import DataPlane
internal import ExportNBD
internal import FoundationEssentials
internal import Glibc
internal import Hummingbird
package import Logging
internal import RingIO
internal import ServiceLifecycle

// The service as a whole: what must exist before what, and the way back.
//
//   state directory locked -> control socket claimed -> loops -> devices -> cut thread and
//   snapshots -> NBD -> HTTP -> ready
//
// `run` takes these steps in order and undoes those taken in the opposite order, whether the end
// is a graceful stop or a failure at any step.

/// Version of the program.
package let stillpointVersion = "0.1.0"

/// What the routes of the control socket lead to.
struct Registries: Sendable {
    let devices: DeviceRegistry
    let snapshots: SnapshotRegistry
    let events: EventLog
}

/// The running service; see the head of this file.
package final class StillpointService: Service {
    private let configuration: ServiceConfiguration
    private let logger: Logger
    private let whenReady: @Sendable () -> Void
    private let startedAt = Date()

    /// `whenReady` is called once, when all is reachable.
    package init(
        _ configuration: ServiceConfiguration, logger: Logger,
        whenReady: @escaping @Sendable () -> Void
    ) {
        self.configuration = configuration
        self.logger = logger
        self.whenReady = whenReady
    }

    /// Serves until a graceful stop is asked for.
    package func run() async throws {
        if let user = configuration.user {
            for path in ownDirectories { try user.checkDirectory(path) }
        }
        let state = try StateDirectory(opening: configuration.stateDirectory)
        let remembered = try state.load()
        do throws(SystemFailure) {
            try makePrivateDirectory(configuration.runtimeDirectory)
        } catch {
            throw ControlError(
                .failed, "runtime directory cannot be made (\(error)); see --runtime-dir")
        }
        let socket = try ControlSocket(claiming: configuration.control)
        defer { socket.remove() }
        let blocking = try BlockingPool()
        defer { blocking.close() }
        let loops = try startLoops()
        let outcome: Result<Void, any Error>
        do {
            outcome = .success(
                try await runDevices(
                    remembered, state: state, socket: socket, loops: loops, blocking: blocking))
        } catch { outcome = .failure(error) }
        await stop(loops, on: blocking)
        try outcome.get()
        logger.info("stopped")
    }

    private func startLoops() throws -> [LoopThread] {
        let cores = sysconf(Int32(_SC_NPROCESSORS_ONLN))
        let count = configuration.loopCount ?? max(1, min(4, cores))
        var loopConfiguration = LoopConfiguration()
        loopConfiguration.without = configuration.withoutRingFeatures
        var loops: [LoopThread] = []
        do {
            for index in 0..<count {
                loops.append(try LoopThread(index: index, configuration: loopConfiguration))
            }
        } catch {
            for loop in loops { loop.stopAndJoin() }
            throw ControlError(.failed, "the service cannot start: \(error)")
        }
        return loops
    }

    private func stop(_ loops: [LoopThread], on blocking: BlockingPool) async {
        let done: Void? = await blocking.run { for loop in loops { loop.stopAndJoin() } }
        precondition(done != nil, "nothing else waits in the blocking pool at the end")
    }

    private func runDevices(
        _ remembered: [RememberedDevice], state: StateDirectory, socket: ControlSocket,
        loops: [LoopThread], blocking: BlockingPool
    ) async throws {
        let exports = ExportTable()
        let events = EventLog()
        let registry = DeviceRegistry(
            loops: loops, blocking: blocking, state: state, exports: exports, events: events,
            logger: logger)
        let outcome: Result<Void, any Error>
        do {
            try await registry.attachAtStart(configuration.attach, remembered: remembered)
            let cuts = try startCutThread()
            let snapshots = SnapshotRegistry(
                devices: registry, blocking: blocking, exports: exports, events: events,
                cuts: cuts, defaultStorage: state.path, logger: logger)
            outcome = await runSnapshots(
                Registries(devices: registry, snapshots: snapshots, events: events), exports,
                socket: socket, loops: loops)
            // No cut is under way any more: this joins a thread that has nothing left to do.
            if await blocking.run({ cuts.close() }) == nil { cuts.close() }
        } catch { outcome = .failure(error) }
        let faults = await registry.closeAll()
        for fault in faults { logger.error("\(fault)") }
        try outcome.get()
        if !faults.isEmpty {
            throw ControlError(.failed, faults.joined(separator: "; "))
        }
    }

    private func startCutThread() throws(ControlError) -> CutThread {
        do throws(RingError) {
            return try CutThread()
        } catch { throw ControlError(.failed, "the service cannot start: \(error)") }
    }

    /// Serves, and destroys the snapshots at the end: they do not outlive the service.
    private func runSnapshots(
        _ registries: Registries, _ exports: ExportTable, socket: ControlSocket,
        loops: [LoopThread]
    ) async -> Result<Void, any Error> {
        let outcome: Result<Void, any Error>
        do {
            outcome = .success(
                try await runExports(exports, registries, socket: socket, loops: loops))
        } catch { outcome = .failure(error) }
        await registries.snapshots.closeAll()
        return outcome
    }

    private func runExports(
        _ exports: ExportTable, _ registries: Registries, socket: ControlSocket,
        loops: [LoopThread]
    ) async throws {
        var server = NBDServerConfiguration(endpoints: configuration.nbd.map(\.endpoint))
        server.allowsPlaintext = configuration.allowsPlaintext
        let gateway = try configuration.encryption?.gateway(
            threadCount: loops.count, logger: logger)
        if let gateway, let settings = configuration.encryption {
            server.encryption = NBDEncryption(mode: settings.mode, gateway: gateway)
        }
        let nbd = NBDServer(directory: exports, loops: loops, configuration: server)
        let outcome: Result<Void, any Error>
        do {
            outcome = .success(try await runNBD(nbd, registries, socket: socket))
        } catch { outcome = .failure(error) }
        await gateway?.close()
        try outcome.get()
    }

    private func runNBD(
        _ nbd: NBDServer, _ registries: Registries, socket: ControlSocket
    ) async throws {
        do {
            try await nbd.start()
        } catch let error as NBDServerError { throw Self.refusal(of: error) }
        let outcome: Result<Void, any Error>
        do {
            outcome = .success(try await runHTTP(registries, socket: socket))
        } catch { outcome = .failure(error) }
        await nbd.stop()
        try outcome.get()
    }

    private static func refusal(of error: NBDServerError) -> ControlError {
        switch error.kind {
        case .busy: ControlError(.busy, error.message)
        case .refused: ControlError(.invalid, error.message)
        case .failed: ControlError(.failed, error.message)
        }
    }

    /// Serves HTTP until the graceful stop, which lets requests under way finish.
    private func runHTTP(_ registries: Registries, socket: ControlSocket) async throws {
        let server = ControlServer(
            registries: registries, status: { await self.status(registries) },
            user: configuration.user, logger: logger)
        let (failures, failed) = AsyncStream.makeStream(of: (any Error).self)
        let application = server.application(path: configuration.control) {
            do {
                try socket.bound()
                try self.giveUpRoot()
                self.tellReady()
            } catch { failed.yield(error) }
        }
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                // Those who follow events are requests under way that would never finish.
                try await withGracefulShutdownHandler {
                    try await application.run()
                } onGracefulShutdown: {
                    registries.events.close()
                }
            }
            group.addTask { for await failure in failures { throw failure } }
            defer { group.cancelAll() }
            do {
                try await group.next()
            } catch  where Task.isShuttingDownGracefully {
                // Asked to stop while it was starting: Hummingbird then ends with an error.
                logger.info("stopped before the control socket was open: \(error)")
            } catch {
                throw (error as? ControlError)
                    ?? ControlError(
                        .failed, "the control socket \(configuration.control) failed: \(error)")
            }
        }
    }

    /// Directories that are the service's alone.
    private var ownDirectories: [String] {
        [configuration.stateDirectory, configuration.runtimeDirectory]
    }

    private func giveUpRoot() throws {
        guard let user = configuration.user else { return }
        for path in ownDirectories { try user.own(path) }
        try user.ownSockets(
            [configuration.control]
                + configuration.nbd.compactMap { address in
                    if case .unix(let path) = address { path } else { nil }
                })
        try user.take()
        logger.info("goes on as \(user.name)")
    }

    private func tellReady() {
        if let address = configuration.notifySocket {
            do throws(SystemFailure) {
                try ServiceManager.notify("READY=1", address: address)
            } catch {
                // The service works all the same; its manager will say what it makes of it.
                logger.error("the service manager could not be told: \(error)")
            }
        }
        logger.info("ready, control socket \(configuration.control)")
        whenReady()
    }

    private func status(_ registries: Registries) async -> StatusDocument {
        let registry = registries.devices
        return StatusDocument(
            version: stillpointVersion, processId: getpid(), startedAt: startedAt,
            control: configuration.control, stateDirectory: configuration.stateDirectory,
            runtimeDirectory: configuration.runtimeDirectory,
            nbd: configuration.nbd.map(\.description), loops: await registry.listLoops(),
            memory: MemoryDocument(residentBytes: residentBytes()),
            devices: await registry.list(), snapshots: await registries.snapshots.list(),
            missing: await registry.listMissing())
    }

    /// Resident memory of this process; 0 when the kernel does not say.
    private func residentBytes() -> UInt64 {
        guard let file = fopen("/proc/self/statm", "re") else { return 0 }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        guard fgets(&line, Int32(line.count), file) != nil else { return 0 }
        let text = String(
            decoding: line.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
        let fields = text.split(separator: " ")
        guard fields.count > 1, let pages = UInt64(fields[1]) else { return 0 }
        return pages * UInt64(sysconf(Int32(_SC_PAGESIZE)))
    }
}
