package import BlockModel
package import ControlDocuments
package import DataPlane
package import Devices
internal import ExportNBD
internal import FoundationEssentials
internal import Generations
internal import Host
package import Logging
internal import Origins
package import RingIO
package import ServiceState

// The devices of the service: attach, list, show, resize, detach.
//
// Invariants
// - A name under operation is in `reserved`: a second operation on it is refused as busy, so the
//   awaits inside an operation see nobody else touch that name.
// - A device is published to exports only after it is attached and remembered.
// - An operation that fails leaves data plane, state file and exports as they were.
// - A device with a holder (a snapshot) is not detached before the holder has released it, one that
//   is pinned (a cut or a question about its changes is under way) not before that has ended.

/// The devices of the service; see the head of this file.
package actor DeviceRegistry {
    struct Entry {
        let request: AttachRequest
        let device: AttachedDevice
        let attachedAt: Date
        var export: ExportDescription

        var remembered: RememberedDevice {
            RememberedDevice(
                name: request.name.text, path: request.isLive ? request.path : device.facts.path,
                readOnly: request.isReadOnly, sectorSize: request.sectorBytes,
                exclusive: request.isExclusive ? true : nil, live: request.isLive ? true : nil)
        }
    }

    struct Missing {
        let remembered: RememberedDevice
        let reason: String
    }

    /// Most devices.
    package static let capacity = 1024

    private let loops: [LoopThread]
    /// Where the registries make system calls that can block.
    package nonisolated let blocking: BlockingPool
    let cuts: CutThread
    let places: TrackingPlaces
    private let state: StateDirectory
    let exports: ExportTable
    let events: EventLog
    /// Devices being opened, by the number of their loop.
    private var openingCounts: [Int: Int] = [:]
    /// How origins stand that are not as they were.
    var originStates: [ObjectName: OriginState] = [:]
    let checkpoints: CheckpointStore
    let logger: Logger
    var entries: [ObjectName: Entry] = [:]
    var pins: [ObjectName: Int] = [:]
    var pinWaiters: [ObjectName: CheckedContinuation<Void, Never>] = [:]
    var missing: [ObjectName: Missing] = [:]
    var reserved: Set<ObjectName> = []
    var holders: [ObjectName: [SnapshotLabel]] = [:]
    var isStopping = false
    /// Told of devices that have another size now.
    private var sizeFollower: (@Sendable (ObjectName) async -> Void)?
    /// When tracking that was lost was last started again.
    var renewedAt: [ObjectName: ContinuousClock.Instant] = [:]

    package init(
        loops: [LoopThread], blocking: BlockingPool, cuts: CutThread, tracking: TrackingPlaces,
        state: StateDirectory, exports: ExportTable, events: EventLog,
        checkpoints: CheckpointStore, logger: Logger
    ) {
        precondition(!loops.isEmpty, "a service has a loop")
        self.loops = loops
        self.blocking = blocking
        self.cuts = cuts
        places = tracking
        self.state = state
        self.exports = exports
        self.events = events
        self.checkpoints = checkpoints
        self.logger = logger
    }

    /// Has `body` called whenever a device was resized; one follower.
    package func followSizes(_ body: @escaping @Sendable (ObjectName) async -> Void) {
        precondition(sizeFollower == nil, "sizes have one follower")
        sizeFollower = body
    }

    /// A device has another size: what shows it to others follows.
    func sizeChanged(of name: ObjectName) async { await sizeFollower?(name) }

    // -- attach

    /// Attaches an origin, remembers it and publishes its export. The same again: `isNew` is
    /// false and nothing changes.
    package func attach(
        _ request: AttachRequest
    ) async throws -> (device: DeviceDocument, isNew: Bool) {
        try reserve(request.name)
        defer { reserved.remove(request.name) }
        let path = try await originPath(of: request)
        if let entry = entries[request.name] {
            guard entry.device.facts.path == path, entry.request.isReadOnly == request.isReadOnly,
                entry.request.isExclusive == request.isExclusive,
                entry.request.isLive == request.isLive,
                request.sectorBytes == nil || request.sectorBytes == entry.device.facts.sectorBytes
            else {
                throw ControlError(
                    .nameTaken,
                    "device \(request.name) exists with origin \(entry.device.facts.path) or other "
                        + "options; choose another name or detach it first")
            }
            return (await document(of: entry), false)
        }
        try checkUnused(path, by: request)
        try await checkOneMode(path, of: request)
        guard entries.count + reserved.count <= Self.capacity else {
            throw ControlError(
                .limitReached,
                "\(Self.capacity) devices are attached, the most that the service allows; detach one"
            )
        }
        let entry = try await open(request)
        entries[request.name] = entry
        let wasMissing = missing.removeValue(forKey: request.name)
        do {
            try await save()
        } catch {
            entries[request.name] = nil
            missing[request.name] = wasMissing
            let fault = await entry.device.detach()
            await entry.device.endLiveTracking()
            if let fault {
                logger.error("flush of origin \(path) failed: \(fault)")
            }
            await places.guardian.forget(request.name)
            throw error
        }
        published(entry)
        logger.info("attached device \(request.name), origin \(path)")
        return (await document(of: entry), true)
    }

    /// Attaches what is remembered, then what the command line asks for. What is remembered and
    /// cannot be attached is reported as missing, kept, and does not keep the rest from being
    /// served; what the command line asks for must be attached.
    package func attachAtStart(_ requests: [AttachRequest], remembered: [RememberedDevice])
        async throws
    {
        let asked = Set(requests.map(\.name.text))
        // Side by side: an origin that does not answer does not keep the others waiting.
        await withTaskGroup(of: Void.self) { group in
            for device in remembered where !asked.contains(device.name) {
                group.addTask { await self.attachAgain(device) }
            }
        }
        for request in requests {
            var request = request
            if let old = remembered.first(where: { $0.name == request.name.text }) {
                if old.path == request.path {
                    request = try request.remembering(old)
                } else if await resolved(request.path) == old.path {
                    request = try request.remembering(old)
                } else {
                    logger.warning(
                        """
                        device \(request.name) was remembered with origin \(old.path); the \
                        command line says \(request.path)
                        """)
                }
            }
            _ = try await attach(request)
        }
    }

    private func attachAgain(_ device: RememberedDevice) async {
        do {
            let request = try AttachRequest(
                name: device.name, path: device.path, isReadOnly: device.readOnly,
                sectorBytes: device.sectorSize, isExclusive: device.exclusive ?? false,
                isLive: device.live ?? false)
            let entry = try await open(request)
            entries[request.name] = entry
            published(entry)
            logger.info("attached device \(request.name) again, origin \(device.path)")
        } catch {
            guard let name = ObjectName(device.name) else {
                logger.error("the state directory names a device \"\(device.name)\": \(error)")
                return
            }
            logger.error("device \(name) is missing: \(error)")
            missing[name] = Missing(remembered: device, reason: "\(error)")
        }
    }

    private func published(_ entry: Entry) {
        exports.publish(entry.export, changes: .device(entry.request.name))
        events.record(
            .deviceAttached, device: entry.request.name,
            "device \(entry.request.name) attached, origin \(entry.device.facts.path)")
        reportGeneration(of: entry)
    }

    private func open(_ request: AttachRequest) async throws -> Entry {
        let loop = idlestLoop()
        openingCounts[loop.index, default: 0] += 1
        defer { openingCounts[loop.index, default: 0] -= 1 }
        let path = try await originPath(of: request)
        let device: AttachedDevice
        do throws(AttachError) {
            device = try await AttachedDevice.attach(
                path: path, isReadOnly: request.isReadOnly, sectorBytes: request.sectorBytes,
                tracking: tracking(request), live: request.isLive ? places.live : nil, on: loop,
                blocking: blocking)
        } catch {
            await places.guardian.forget(request.name)
            throw ControlError(error)
        }
        // Before anybody can write: marks are exact for the newest checkpoint.
        if let generation = await device.currentGeneration() {
            await device.setNewestBase(
                checkpoints.newestBase(of: request.name, in: generation), of: generation)
            exports.setBases(
                checkpoints.exportBases(of: request.name, in: generation), of: request.name)
        }
        let facts = device.facts
        let export = ExportDescription(
            name: request.name.text,
            summary: (request.isLive
                ? "live device " : facts.isBlockDevice ? "block device " : "disk image ")
                + facts.path,
            size: facts.size, isReadOnly: facts.isReadOnly, isRotational: facts.isRotational,
            canDiscard: !facts.isReadOnly, loop: loop, target: device.target)
        return Entry(request: request, device: device, attachedAt: Date(), export: export)
    }

    private func tracking(_ request: AttachRequest) -> TrackingRequest {
        let (name, guardian, freezeLock) = (request.name, places.guardian, state.freezeLock)
        return TrackingRequest(
            name: name, stateDirectory: state.path, runtimeDirectory: places.runtimeDirectory,
            bootID: places.bootID, isExclusive: request.isExclusive,
            watch: { await guardian.watch($0) },
            notify: { notice in Task { await self.noticed(notice, of: name) } },
            writing: { await freezeLock.lockShared() }, wrote: { freezeLock.unlock() })
    }

    /// The data plane refuses a second attach too, by its locks; this names who has it.
    private func checkUnused(
        _ path: String, by request: AttachRequest
    ) throws(ControlError) {
        guard let user = entries.first(where: { $0.value.device.facts.path == path }) else {
            return
        }
        throw ControlError(
            .inUse,
            "origin \(path) is attached as device \(user.key); use that one, or detach it first")
    }

    // -- list and show

    /// All devices, by name.
    package func list() async -> [DeviceDocument] {
        var documents: [DeviceDocument] = []
        for (_, entry) in entries.sorted(by: { $0.key < $1.key }) {
            documents.append(await document(of: entry))
        }
        return documents
    }

    /// One device.
    package func show(_ name: String) async throws -> DeviceDocument {
        guard let checked = ObjectName(name), let entry = entries[checked] else {
            if let checked = ObjectName(name), let missing = missing[checked] {
                throw isMissing(name, missing)
            }
            throw noSuchDevice(name)
        }
        return await document(of: entry)
    }

    /// Devices that are remembered and could not be attached, by name.
    package func listMissing() -> [MissingDeviceDocument] {
        missing.sorted { $0.key < $1.key }.map { name, missing in
            MissingDeviceDocument(
                name: name.text, path: missing.remembered.path, reason: missing.reason)
        }
    }

    /// The loops and how many devices each serves.
    package func listLoops() -> [LoopDocument] {
        loops.map { loop in
            LoopDocument(
                loop: loop.index,
                features: RingFeatures.names.filter { loop.features.contains($0.feature) }
                    .map(\.name),
                ioFlusher: loop.isIOFlusher,
                devices: entries.values.count { $0.device.loop.index == loop.index })
        }
    }

    /// What all devices did, by name; those whose loop does not answer are left out.
    package func activity() async -> [(document: DeviceDocument, activity: DeviceActivity)] {
        var all: [(document: DeviceDocument, activity: DeviceActivity)] = []
        for (_, entry) in entries.sorted(by: { $0.key < $1.key }) {
            guard let activity = await entry.device.activity() else { continue }
            all.append((await document(of: entry), activity))
        }
        return all
    }

    /// What the loops have handed out.
    package func loopUsage() async -> [(index: Int, usage: LoopUsage)] {
        var all: [(index: Int, usage: LoopUsage)] = []
        for loop in loops {
            if let usage = await LoopUsage.of(loop) { all.append((loop.index, usage)) }
        }
        return all
    }

    // -- detach

    /// Detaches a device and forgets it; returns it as it last was. Refused while it has users or
    /// a snapshot of it is there, unless `isForced`: then `destroy` ends the snapshots, and the
    /// users' sessions are closed.
    package func detach(
        _ name: String, isForced: Bool, destroying destroy: ([SnapshotLabel]) async -> Void
    ) async throws -> DeviceDocument? {
        guard let checked = ObjectName(name) else { throw noSuchDevice(name) }
        try reserve(checked)
        defer { reserved.remove(checked) }
        guard let entry = entries[checked] else {
            guard let gone = missing.removeValue(forKey: checked) else { throw noSuchDevice(name) }
            do {
                try await save()
            } catch {
                missing[checked] = gone
                throw error
            }
            return nil
        }
        await unpinned(checked)
        if let held = holders[checked] {
            guard isForced else { throw isHeld(checked, by: held) }
            await destroy(held)
        }
        // Withdrawn first, so that no client connects between the count and the close.
        exports.withdraw(name)
        let last = await document(of: entry)
        if last.connections > 0 && !isForced {
            exports.publish(entry.export, changes: .device(entry.request.name))
            throw ControlError(
                .inUse,
                "device \(name) has \(last.connections) connection(s) open; close them, or detach "
                    + "with --force",
                details: ["connections": "\(last.connections)"])
        }
        entries[checked] = nil
        originStates[checked] = nil
        do {
            try await save()
        } catch {
            entries[checked] = entry
            exports.publish(entry.export, changes: .device(entry.request.name))
            throw error
        }
        let fault = await entry.device.detach()
        await entry.device.endLiveTracking()
        await places.guardian.forget(checked)
        if let fault {
            throw ControlError(
                .failed,
                "device \(name) is detached, but the last flush of \(entry.device.facts.path) "
                    + "failed (errno \(fault.errnoValue)): what was not flushed may be lost")
        }
        exports.setBases(nil, of: checked)
        events.record(.deviceDetached, device: checked, "device \(name) detached")
        logger.info("detached device \(name)")
        return last
    }

    /// From now on operations are refused.
    package func stopping() { isStopping = true }

    /// Closes all devices for the service's end and keeps them remembered. Returns what went
    /// wrong, one sentence each.
    package func closeAll() async -> [String] {
        isStopping = true
        var faults: [String] = []
        await withTaskGroup(of: String?.self) { group in
            for (name, entry) in entries {
                exports.withdraw(name.text)
                group.addTask {
                    guard let fault = await entry.device.detach() else { return nil }
                    return "device \(name): the last flush of \(entry.device.facts.path) failed "
                        + "(errno \(fault.errnoValue)): what was not flushed may be lost"
                }
            }
            for await fault in group { if let fault { faults.append(fault) } }
        }
        entries = [:]
        return faults
    }

    // -- helpers

    func reserve(_ name: ObjectName) throws(ControlError) {
        guard !isStopping else { throw ControlError.stopping }
        guard reserved.insert(name).inserted else { throw isReserved(name) }
    }

    func isReserved(_ name: ObjectName) -> ControlError {
        ControlError(
            .busy, "device \(name) is being attached or detached; try again in a moment")
    }

    func isMissing(_ name: String, _ missing: Missing) -> ControlError {
        ControlError(
            .deviceMissing,
            "device \(name) is remembered but could not be attached: \(missing.reason)")
    }

    private func isHeld(_ name: ObjectName, by snapshots: [SnapshotLabel]) -> ControlError {
        let list = snapshots.map(\.description).joined(separator: ", ")
        return ControlError(
            .inUse,
            "device \(name) is in snapshot(s) \(list); destroy them first, or detach with --force",
            details: ["snapshots": list])
    }

    private func save() async throws {
        try await state.save(
            entries.values.map(\.remembered) + missing.values.map(\.remembered), on: blocking)
    }

    /// The path with symbolic links resolved; as it is where that fails, for the data plane then
    /// says what is wrong with it.
    func resolved(_ path: String) async -> String {
        do throws(ControlError) {
            return try await blocking.runOnNamedPath(.paths, "origin \(path)") {
                do throws(HostError) { return try resolvedPath(path) } catch { return path }
            }
        } catch { return path }
    }

    private func idlestLoop() -> LoopThread {
        var counts = loops.map { _ in 0 }
        for (place, loop) in loops.enumerated() {
            counts[place] =
                entries.values.count { $0.device.loop === loop }
                + (openingCounts[loop.index] ?? 0)
        }
        let place = counts.indices.min { counts[$0] < counts[$1] } ?? 0
        return loops[place]
    }

    func noSuchDevice(_ name: String) -> ControlError {
        .noSuchDevice(name, among: entries.keys.map(\.text) + missing.keys.map(\.text))
    }

    func document(of entry: Entry) async -> DeviceDocument {
        let facts = entry.device.facts
        let users = await entry.device.userCount()
        let progress = await entry.device.progress()
        let originState = await lookAtOrigin(of: entry.request.name)
        return DeviceDocument(
            name: entry.request.name.text, path: facts.path, size: facts.size,
            sectorSize: facts.sectorBytes, blockSize: blockByteCount, chunkSize: chunkByteCount,
            chunkCount: facts.size / chunkByteCount + (facts.size % chunkByteCount == 0 ? 0 : 1),
            readOnly: facts.isReadOnly, blockDevice: facts.isBlockDevice,
            rotational: facts.isRotational, access: facts.accessMode.rawValue,
            loop: entry.device.loop.index, attachedAt: entry.attachedAt, connections: users,
            snapshots: (holders[entry.request.name] ?? []).map(\.id.description),
            exclusive: entry.request.isExclusive, mode: entry.request.isLive ? "live" : "served",
            granularity: entry.device.granularity ?? blockByteCount,
            history: progress.map { $0.generationStatus.isContinued ? "continued" : "new" },
            historyReason: progress?.generationStatus.reason,
            generation: progress?.generation.description, epoch: progress?.epoch.rawValue,
            lastCut: progress.flatMap { progress in
                progress.lastCutSeconds == 0
                    ? nil : Date(timeIntervalSince1970: TimeInterval(progress.lastCutSeconds))
            },
            counters: (progress?.counters).map(CountersDocument.init),
            originState: originState)
    }
}

extension CountersDocument {
    init(_ counters: DeviceCounters) {
        self.init(
            reads: counters.reads, writes: counters.writes, readBytes: counters.readBytes,
            writtenBytes: counters.writtenBytes, flushes: counters.flushes,
            discards: counters.discards, zeroes: counters.zeroes, failures: counters.failures,
            markedBlocks: counters.markedBlocks, copiedBlocks: counters.copiedBlocks,
            copiedBytes: counters.copiedBytes, parkedWrites: counters.parkedWrites)
    }
}
