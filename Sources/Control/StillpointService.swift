internal import BlockDeviceManagement
internal import ControlDocuments
internal import DataPlane
internal import DeviceManagement
internal import ExportNBD
internal import FoundationEssentials
internal import Freezing
internal import Glibc
internal import Guardianship
internal import HTTPInterface
internal import Host
internal import LiveTracking
package import Logging
internal import Monitoring
internal import Origins
internal import Quiescing
internal import RingIO
internal import ServiceLifecycle
internal import ServiceState
internal import SnapshotManagement
internal import Synchronization

// The service as a whole: what must exist before what, and the way back.
//
//   state and runtime directory locked -> control socket claimed -> loops -> cut thread, guardian
//   -> devices -> snapshots -> block devices -> NBD -> HTTP -> ready
//
// `run` takes these steps in order and undoes those taken in the opposite order, whether the end
// is a graceful stop or a failure at any step.

/// The running service; see the head of this file.
package final class StillpointService: Service {
    private let configuration: ServiceConfiguration
    private let logger: Logger
    private let whenReady: @Sendable () -> Void
    private let startedAt = Date()
    private let counts = RequestCounts(followersMax: ControlLimits.followersMax)
    private let pageCounts = RequestCounts(followersMax: PageLimits.followersMax)
    private let changedSince = ChangedSince()
    private let letGo = Mutex<LetGoDocument?>(nil)

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
        if let unbound = configuration.unboundControl {
            logger.warning(
                """
                the control socket is \(configuration.control), which was passed; \(unbound) is not \
                bound
                """)
        }
        if let user = configuration.user {
            for path in ownDirectories { try user.checkDirectory(path) }
        }
        let state = try StateDirectory(opening: configuration.stateDirectory)
        let remembered = try state.load()
        let blocks = try state.loadBlocks()
        let checkpoints = try CheckpointStore(loading: state.path)
        let runtime = try LockedDirectory(runtime: configuration.runtimeDirectory)
        defer { withExtendedLifetime(runtime) {} }
        let blocking = try BlockingPool.service()
        defer { blocking.close() }
        let socket = try await claimSocket(on: blocking)
        defer { socket.remove() }
        let loops = try startLoops()
        let outcome: Result<Void, any Error>
        do {
            outcome = .success(
                try await runDevices(
                    Remembered(devices: remembered, blocks: blocks), checkpoints, state: state,
                    socket: socket, loops: loops, blocking: blocking))
        } catch { outcome = .failure(error) }
        await stop(loops, on: blocking)
        try outcome.get()
        logger.info("stopped")
    }

    /// Another service that starts on the same path is waited for: not on a thread of Swift's pool.
    private func claimSocket(on blocking: BlockingPool) async throws -> ControlSocket {
        let path = configuration.control
        if let passed = configuration.passed.control {
            return ControlSocket(passed: passed, at: path)
        }
        let outcome = await blocking.run { Result { try ControlSocket(claiming: path) } }
        guard let outcome else {
            preconditionFailure("nothing else waits in the blocking pool at the start")
        }
        return try outcome.get()
    }

    private func startLoops() throws -> [LoopThread] {
        let cores = sysconf(Int32(_SC_NPROCESSORS_ONLN))
        let count = configuration.loopCount ?? max(1, min(4, cores))
        var loopConfiguration = LoopConfiguration()
        loopConfiguration.without = configuration.withoutRingFeatures
        // For tests, and for finding what blocks a loop.
        let request = getenv("STILLPOINT_MEASURE_HOLDS")
        loopConfiguration.measuresHolds = request.map { $0.pointee != 0 } ?? false
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
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let accepted = blocking.require {
                for loop in loops { loop.stopAndJoin() }
                continuation.resume()
            }
            precondition(accepted, "the pool ends after the loops")
        }
    }

    /// What the state directory says of the time before.
    private struct Remembered {
        var devices: [RememberedDevice]
        var blocks: [RememberedBlock]
        /// What the guardian of the service before held.
        var held: [HeldDevice] = []
    }

    private func runDevices(
        _ remembered: Remembered, _ store: CheckpointStore, state: StateDirectory,
        socket: ControlSocket, loops: [LoopThread], blocking: BlockingPool
    ) async throws {
        let exports = ExportTable()
        let statePath = state.path
        let found = await blocking.run {
            (
                EventNumbers(in: statePath, logger: self.logger),
                CopyRegistry.load(statePath, logger: self.logger)
            )
        }
        guard let (numbers, lastCopies) = found else {
            preconditionFailure("nothing else waits in the blocking pool at the start")
        }
        let events = EventLog(after: numbers.base)
        let guardian = Guardian(
            stateDirectory: state.path, runtimeDirectory: configuration.runtimeDirectory,
            restartLimitSeconds: configuration.restartLimitSeconds, freezeLock: state.freezeLock,
            blocking: blocking,
            logger: logger)
        var remembered = remembered
        remembered.held = try await guardian.start()
        await reportReleasedDevices(isTakenOver: !remembered.held.isEmpty, on: blocking)
        let cuts = try startCutThread()
        let registry = DeviceRegistry(
            loops: loops, blocking: blocking, cuts: cuts,
            tracking: TrackingPlaces(
                runtimeDirectory: configuration.runtimeDirectory, bootID: BootID.current,
                guardian: guardian,
                live: LiveTracker(runtimeDirectory: configuration.runtimeDirectory)),
            state: state, exports: exports, events: events, checkpoints: store, logger: logger)
        let outcome: Result<Void, any Error>
        do {
            try await registry.attachAtStart(configuration.attach, remembered: remembered.devices)
            await registry.forgetUnusedMarks()
            let checkpoints = CheckpointRegistry(
                store: store, devices: registry, blocking: blocking, cuts: cuts,
                freezeLock: state.freezeLock, logger: logger)
            let snapshots = snapshotRegistry(
                devices: registry, checkpoints: checkpoints, state: state, cuts: cuts,
                blocking: blocking, exports: exports, events: events)
            await checkpoints.cutLive(by: snapshots.liveCuts)
            let blocks = BlockRegistry(
                directory: configuration.runtimeDirectory + "/block", devices: registry,
                snapshots: snapshots, exports: exports, events: events, blocking: blocking,
                guardian: guardian,
                links: BlockLinks(directory: configuration.blockLinkDirectory), state: state,
                logger: logger)
            await registry.followSizes { await blocks.deviceResized($0) }
            outcome = await runSnapshots(
                Registries(
                    devices: registry, snapshots: snapshots, checkpoints: checkpoints,
                    blocks: blocks, events: events, cuts: cuts,
                    copies: CopyRegistry(
                        devices: registry, state: state, remembered: lastCopies,
                        blocking: blocking, logger: logger)),
                exports, remembered, socket: socket, loops: loops
            ) { [logger] last in
                do {
                    try await numbers.cover(last, on: blocking, freezeLock: state.freezeLock)
                } catch { logger.error("\(error)") }
            }
        } catch { outcome = .failure(error) }
        await registry.stopping()
        // The cuts under way end; those that come are refused.
        if await blocking.run(.housekeeping, { cuts.close() }) == nil { cuts.close() }
        let faults = await registry.closeAll()
        await guardian.dismiss()
        for fault in faults { logger.error("\(fault)") }
        do {
            try await numbers.replace(events.last, on: blocking)
        } catch { logger.error("\(error)") }
        try outcome.get()
        if !faults.isEmpty {
            throw ControlError(.failed, faults.joined(separator: "; "))
        }
    }

    private func snapshotRegistry(
        devices: DeviceRegistry, checkpoints: CheckpointRegistry, state: StateDirectory,
        cuts: CutThread, blocking: BlockingPool, exports: ExportTable, events: EventLog
    ) -> SnapshotRegistry {
        var limits = FreezeLimits()
        if let limit = configuration.freezeLimitMilliseconds { limits.freezeMilliseconds = limit }
        let freezing = FilesystemFreezing(
            listPath: configuration.runtimeDirectory + "/" + FrozenFilesystems.listName,
            freezeLock: state.freezeLock, log: .shared, blocking: blocking, cuts: cuts,
            limits: limits,
            localBlockDevices: {
                ServedBlockDevices.byDevice().merging(await devices.liveBlockDevices()) {
                    $0.union($1)
                }
            }, logger: logger)
        return SnapshotRegistry(
            devices: devices, checkpoints: checkpoints, blocking: blocking, exports: exports,
            events: events, freezing: freezing,
            hooks: HookRunner(
                freezeLock: state.freezeLock, blocking: blocking, control: configuration.control),
            ownDirectories: [
                ("the state directory \(state.path)", state.path),
                (
                    "the runtime directory \(configuration.runtimeDirectory)",
                    configuration.runtimeDirectory
                ),
            ],
            defaultStorage: state.path, logger: logger)
    }

    private func startCutThread() throws(ControlError) -> CutThread {
        do throws(RingError) {
            return try CutThread()
        } catch { throw ControlError(.failed, "the service cannot start: \(error)") }
    }

    /// Tells of block devices that no service answered in time.
    private func reportReleasedDevices(isTakenOver: Bool, on blocking: BlockingPool) async {
        let directory = configuration.runtimeDirectory
        let notes = await blocking.run { () -> (WaitingNote?, WaitingNote?) in
            defer {
                WaitingNote.remove(in: directory, letGo: true)
                WaitingNote.remove(in: directory, letGo: false)
            }
            return (
                WaitingNote.read(in: directory, letGo: true),
                WaitingNote.read(in: directory, letGo: false)
            )
        }
        guard let notes else { return }
        if let note = notes.0 {
            letGo.withLock { $0 = LetGoDocument(note) }
            logger.error(
                """
                no service ran for \(note.untilSeconds - min(note.sinceSeconds, note.untilSeconds)) s, \
                so these block devices were given up and their I/O failed: \
                \(note.devices.joined(separator: ", "))
                """)
        }
        if let note = notes.1, !isTakenOver {
            logger.error(
                """
                the guardian of the service before has ended too, so the I/O of these block devices \
                failed: \(note.devices.joined(separator: ", "))
                """)
        }
    }

    /// Serves, and takes block devices of images and snapshots away at the end: they do not outlive
    /// the service, as block devices of devices do.
    private func runSnapshots(
        _ registries: Registries, _ exports: ExportTable, _ remembered: Remembered,
        socket: ControlSocket, loops: [LoopThread],
        covering cover: @escaping @Sendable (UInt64) async -> Void
    ) async -> Result<Void, any Error> {
        async let _: Void = registries.events.logNotices(to: logger, covering: cover)
        async let _: Void = registries.devices.watchOrigins()
        async let _: Void = registries.devices.watchLiveDevices()
        let outcome: Result<Void, any Error>
        do {
            try await registries.blocks.start(
                remembered.held, remembered: remembered.blocks, wanted: configuration.blocks)
            outcome = .success(
                try await runExports(exports, registries, socket: socket, loops: loops))
        } catch { outcome = .failure(error) }
        await registries.blocks.closeAll()
        await registries.snapshots.closeAll()
        return outcome
    }

    private func runExports(
        _ exports: ExportTable, _ registries: Registries, socket: ControlSocket,
        loops: [LoopThread]
    ) async throws {
        var server = NBDServerConfiguration(
            endpoints: configuration.passed.nbd.map(\.endpoint)
                + configuration.nbd.map(\.endpoint))
        server.exposureRefusal = configuration.exposureRefusal
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
            metrics: { await self.metrics(registries) },
            about: {
                AboutDocument(
                    version: stillpointVersion, instance: registries.events.instance.description,
                    startedAt: self.startedAt, lastEvent: registries.events.last)
            },
            probe: { try await registries.devices.probe($0) },
            activity: { await self.activity(registries) }, counts: counts,
            explain: { [user = configuration.user] in user?.explained($0) ?? $0 }, logger: logger)
        let (failures, failed) = AsyncStream.makeStream(of: (any Error).self)
        let listener = server.listener()
        let descriptor = try socket.listen()
        let page = try await startPage(server, blocking: registries.devices.blocking)
        let whenRunning: @Sendable () async -> Void = {
            do {
                try self.giveUpRoot()
                self.reportReady()
            } catch { failed.yield(error) }
        }
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask {
                // Those who follow events are requests under way that would never finish.
                try await withGracefulShutdownHandler {
                    try await withThrowingTaskGroup(of: Void.self) { listeners in
                        if let page { listeners.addTask { try await page.run() } }
                        listeners.addTask {
                            try await listener.run(on: descriptor, whenRunning: whenRunning)
                        }
                        try await listeners.waitForAll()
                    }
                } onGracefulShutdown: {
                    registries.events.close()
                }
            }
            group.addTask { for await failure in failures { throw failure } }
            defer { group.cancelAll() }
            do {
                try await group.next()
            } catch {
                throw (error as? ControlError)
                    ?? ControlError(
                        .failed, "the control socket \(configuration.control) failed: \(error)")
            }
        }
    }

    private func startPage(
        _ server: ControlServer, blocking: BlockingPool
    ) async throws -> PageServer? {
        guard let settings = configuration.page else { return nil }
        let page = try await PageServer.start(
            settings, encryption: configuration.encryption, routes: server, counts: pageCounts,
            blocking: blocking)
        let addresses = settings.addresses.map(\.description).joined(separator: ", ")
        logger.info("the page is served on \(addresses)")
        return page
    }

    /// Directories that are the service's alone.
    private var ownDirectories: [String] {
        [configuration.stateDirectory, configuration.runtimeDirectory]
    }

    private func giveUpRoot() throws {
        guard let user = configuration.user else { return }
        for path in ownDirectories { try user.own(path) }
        // Passed sockets stay whose they are.
        let control = configuration.passed.control == nil ? [configuration.control] : []
        try user.ownSockets(
            control
                + configuration.nbd.compactMap { address in
                    if case .unix(let path) = address { path } else { nil }
                })
        try user.take()
        logger.info("continues as user \(user.name)")
    }

    private func reportReady() {
        if let address = configuration.notifySocket {
            do throws(HostError) {
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
            nbd: configuration.servedAddresses.map(\.description),
            http: configuration.page?.addresses.map(\.description) ?? [],
            loops: await registry.listLoops(),
            memory: MemoryDocument(residentBytes: ProcessUsage.residentBytes()),
            devices: await registry.list(), snapshots: await registries.snapshots.list(),
            missing: await registry.listMissing(),
            blocks: await registries.blocks.list(usersSeenWithin: .seconds(2)),
            letGo: letGo.withLock { $0 }, restartLimit: configuration.restartLimitSeconds)
    }

    private func metrics(_ registries: Registries) async -> String {
        let devices = registries.devices
        let activity = await devices.activity()
        return ServiceMetrics(
            version: stillpointVersion,
            process: .now(startedAt: startedAt.timeIntervalSince1970),
            loops: await devices.loopUsage(), devices: activity,
            missingCount: await devices.listMissing().count,
            snapshots: await registries.snapshots.list(), cuts: registries.cuts.cuts,
            events: registries.events.counts(), requests: counts.all(),
            pageRequests: pageCounts.all(),
            newestCheckpoints: await changedSince.newest(registries.changes),
            copies: await registries.copies.last(),
            blocks: await registries.blocks.list(usersSeenWithin: .seconds(10))
        ).text
    }

    private func activity(_ registries: Registries) async -> ActivityDocument {
        ActivityDocument(
            instance: registries.events.instance.description,
            uptimeSeconds: Date().timeIntervalSince(startedAt),
            residentBytes: ProcessUsage.residentBytes(),
            devices: await registries.devices.activityDocuments(),
            snapshots: await registries.snapshots.list().map(ActivityDocument.Snapshot.init))
    }
}

extension LetGoDocument {
    init(_ note: WaitingNote) {
        self.init(
            since: Date(timeIntervalSince1970: TimeInterval(note.sinceSeconds)),
            until: Date(timeIntervalSince1970: TimeInterval(note.untilSeconds)),
            devices: note.devices)
    }
}
