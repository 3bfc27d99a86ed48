package import BlockModel
internal import CLinux
package import ControlDocuments
package import DeviceManagement
internal import ExportBlock
internal import ExportNBD
internal import FoundationEssentials
internal import Glibc
internal import Host
package import Logging
internal import Origins
package import RingIO
package import ServiceState
package import SnapshotManagement
internal import Synchronization

// The local block devices of the service: attach, list, detach; those of devices outlive the
// service, and are remembered.
//
// Invariants
// - A block device is a user of its target, so a device is not detached below it unnoticed.
// - An entry is in `entries` from the moment its loop device exists until everything of it is
//   gone; one under operation is busy, and a second operation on it is refused.
// - A target that is written through a block device has no other one: two page caches over one
//   disk destroy what is on it.
// - Every mount lies in a directory of its own under `directory`, within the runtime directory that
//   no other service uses. Its number is the key by which the guardian holds the device.
// - What is remembered is written before the command that changed it answers.

/// The block devices of the service; see the head of this file.
package actor BlockRegistry {
    final class Entry {
        /// Set when the loop device exists.
        var export: BlockExport?
        let target: String
        let device: ObjectName
        let isReadOnly: Bool
        let scansPartitions: Bool
        var size: UInt64
        let sectorBytes: UInt32
        let attachedAt: Date
        /// Where it is mounted.
        let directory: String
        /// It is not remembered.
        let isTemporary: Bool
        /// How often a service took it over.
        let takeoverCount: Int
        /// The name of its own that leads to its loop device.
        var link: String?
        /// The guardian holds it.
        var isHeld = false
        /// Being made, detached or cut off.
        var isBusy = true
        /// Its session has ended; what else there is of it has to go.
        var hasEnded = false
        /// Those who wait for its end.
        var waiters: [CheckedContinuation<Void, Never>] = []

        init(_ plan: Plan) {
            target = plan.target
            device = plan.device
            isReadOnly = plan.isReadOnly
            scansPartitions = plan.scansPartitions
            size = plan.export.size
            sectorBytes = plan.sectorBytes
            directory = plan.directory
            isTemporary = plan.isTemporary
            attachedAt = plan.former?.attachedAt ?? Date()
            takeoverCount = (plan.former?.takeovers ?? -1) + 1
        }

        /// It shows a device, no image.
        var isDevice: Bool { target == device.text }

        /// What is remembered of it; nil for what is not.
        var remembered: RememberedBlock? {
            guard isDevice, !isTemporary else { return nil }
            return RememberedBlock(
                device: device.text, readOnly: isReadOnly, partitions: scansPartitions)
        }

        /// What the next service must know; nil for images, which end with the service.
        var note: BlockNote? {
            guard isDevice else { return nil }
            return BlockNote(
                device: device.text, readOnly: isReadOnly, partitions: scansPartitions,
                sectorSize: sectorBytes, size: size, directory: directory, path: export?.path,
                deviceNumber: export?.deviceNumber, attachedAt: attachedAt,
                takeovers: takeoverCount, temporary: isTemporary)
        }
    }

    /// What is to be made.
    struct Plan {
        var target: String
        var device: ObjectName
        var export: ExportDescription
        var sectorBytes: UInt32
        var isReadOnly: Bool
        var scansPartitions: Bool
        var isTemporary: Bool
        var directory = ""
        /// What the service before noted of it.
        var former: BlockNote?

        func request() -> BlockExportRequest {
            BlockExportRequest(
                name: target, directory: directory, loop: export.loop, target: export.target,
                sectorBytes: sectorBytes, isReadOnly: isReadOnly,
                scansPartitions: scansPartitions)
        }
    }

    /// What is asked for.
    struct AttachOptions: Sendable {
        var isReadOnly = false
        var scansPartitions = false
        var isTemporary = false
    }

    /// Most block devices.
    package static let capacity = 256

    let directory: String
    let devices: DeviceRegistry
    let snapshots: SnapshotRegistry
    let exports: ExportTable
    let events: EventLog
    let blocking: BlockingPool
    let guardian: Guardian
    let links: BlockLinks
    let state: StateDirectory
    let logger: Logger
    var entries: [UInt64: Entry] = [:]
    private var lastNumber: UInt64 = 0
    private var waiting: BlockingPool?
    /// The directory, made, with symbolic links resolved.
    private var place: String?
    private var isMemoryLocked = false
    private var isStopping = false
    /// Who used the block devices when that was last looked at.
    var lastUsers: (at: ContinuousClock.Instant, users: [String: [String]])?
    /// Attachments of devices that are not there, kept for when they are.
    var absent: [RememberedBlock] = []
    /// Block devices of the previous service whose devices are missing; their users keep waiting.
    var waitingForDevice: [(held: HeldDevice, note: BlockNote)] = []

    package init(
        directory: String, devices: DeviceRegistry, snapshots: SnapshotRegistry,
        exports: ExportTable, events: EventLog, blocking: BlockingPool, guardian: Guardian,
        links: BlockLinks, state: StateDirectory, logger: Logger
    ) {
        self.directory = directory
        self.devices = devices
        self.snapshots = snapshots
        self.exports = exports
        self.events = events
        self.blocking = blocking
        self.guardian = guardian
        self.links = links
        self.state = state
        self.logger = logger
    }

    /// A device has another size: its block device follows, images keep theirs.
    package func deviceResized(_ name: ObjectName) async {
        for entry in entries.values where entry.target == name.text && !entry.hasEnded {
            guard let export = entry.export, let size = exports.export(named: name.text)?.size
            else { continue }
            guard await export.updateSize() else {
                logger.error(
                    """
                    block device \(export.path) of device \(name) could not take over its size; \
                    detach and attach it
                    """)
                continue
            }
            entry.size = size
            await noteAnew(entry)
        }
    }

    // -- attach

    /// Makes a block device for a device or an image.
    package func attach(
        _ name: BlockTargetName, isReadOnly: Bool, scansPartitions: Bool, isTemporary: Bool
    ) async throws -> BlockDocument {
        let options = AttachOptions(
            isReadOnly: isReadOnly, scansPartitions: scansPartitions, isTemporary: isTemporary)
        let (number, entry) = try await attach(name, options)
        if entry.remembered != nil {
            do {
                try await save()
            } catch {
                await end(number, entry)
                throw error
            }
        }
        return document(of: entry)
    }

    /// Makes it and does not yet remember it.
    func attach(
        _ name: BlockTargetName, _ options: AttachOptions
    ) async throws -> (number: UInt64, entry: Entry) {
        guard !isStopping else { throw ControlError.stopping }
        await adoptWaiting(of: name.device)
        var plan = try await plan(name, options)
        try checkUnused(plan)
        guard entries.count < Self.capacity else {
            throw ControlError(
                .limitReached,
                "\(Self.capacity) block devices are attached, the most that the service allows; "
                    + "detach one")
        }
        let number = nextNumber()
        plan.directory = "\(try await madePlace())/\(number)"
        try checkUnused(plan)
        let entry = Entry(plan)
        entries[number] = entry
        do {
            let export = try await open(plan, number, entry)
            entry.export = export
            try await checkStillThere(plan, entry, export)
            try await makeLink(entry, export)
            await noteAnew(entry)
        } catch {
            if let export = entry.export, !entry.hasEnded { await cutOff(export) }
            await gone(number)
            throw error
        }
        entry.isBusy = false
        reportAttached(entry)
        return (number, entry)
    }

    func nextNumber(after number: UInt64 = 0) -> UInt64 {
        lastNumber = max(lastNumber, number) + 1
        return lastNumber
    }

    private func reportAttached(_ entry: Entry) {
        let path = entry.link ?? entry.export?.path ?? ""
        events.record(
            .blockAttached, device: entry.device,
            "\(entry.target) attached as block device \(path)")
        logger.info(
            "attached \(entry.target) as block device \(path) (\(entry.export?.path ?? ""))")
    }

    func plan(_ name: BlockTargetName, _ options: AttachOptions) async throws -> Plan {
        guard let device = ObjectName(name.device) else {
            throw ControlError.noSuchDevice(name.device)
        }
        let sectorBytes = try await devices.sectorBytes(of: device)
        var target = device.text
        if let snapshot = name.snapshot {
            target += "@\(try await snapshots.label(of: snapshot))"
        }
        let isWritableImage = name.snapshot != nil && !options.isReadOnly
        guard let export = exports.export(named: target + (isWritableImage ? ":rw" : "")) else {
            guard name.snapshot != nil else {
                throw ControlError(.noSuchDevice, "device \(device) is being detached")
            }
            throw ControlError(
                .noSuchSnapshot,
                "image \(target) was not found: the snapshot is not taken yet, or is not of this "
                    + "device")
        }
        return Plan(
            target: target, device: device, export: export, sectorBytes: sectorBytes,
            isReadOnly: options.isReadOnly || export.isReadOnly,
            scansPartitions: options.scansPartitions, isTemporary: options.isTemporary)
    }

    private func checkUnused(_ plan: Plan) throws(ControlError) {
        let others = entries.values.filter { $0.target == plan.target }
        guard let other = others.first(where: { !$0.isReadOnly || !plan.isReadOnly }) else {
            return
        }
        throw ControlError(
            .inUse,
            "\(plan.target) is attached as block device \(other.export?.path ?? "already"); a "
                + "second one that is written would destroy its contents; use that one, or detach it "
                + "first")
    }

    private func open(
        _ plan: Plan, _ number: UInt64, _ entry: Entry
    ) async throws -> BlockExport {
        let pools = try pools()
        await lockMemory()
        do throws(BlockExportError) {
            let export = try await BlockExport.open(
                plan.request(), holding: holding(number, entry), pools: pools,
                ended: sessionEnd(number))
            served(export, entry)
            return export
        } catch { throw ControlError(error) }
    }

    /// Who keeps the device from failing while no service answers: for devices the guardian. An
    /// image ends with the service.
    func holding(_ number: UInt64, _ entry: Entry) -> BlockHolding {
        guard entry.isDevice else { return BlockHolding(hold: { _ in }, release: {}) }
        let (guardian, note) = (guardian, entry.note?.bytes)
        return BlockHolding(
            hold: { descriptor in
                guard let note, await guardian.hold(descriptor, as: number, note: note) else {
                    return
                }
                await self.isHeld(number)
            }, release: { await guardian.release(number) })
    }

    private func isHeld(_ number: UInt64) { entries[number]?.isHeld = true }

    func sessionEnd(_ number: UInt64) -> @Sendable () -> Void {
        { [weak self] in Task { await self?.sessionEnded(number) } }
    }

    func served(_ export: BlockExport, _ entry: Entry) {
        ServedBlockDevices.add(export.deviceNumber, of: entry.isDevice ? entry.device : nil)
    }

    /// Has the guardian know what there is to know now.
    func noteAnew(_ entry: Entry) async {
        guard entry.isHeld, let number = entries.first(where: { $0.value === entry })?.key else {
            return
        }
        guard let note = entry.note?.bytes, await guardian.note(note, of: number) else {
            entry.isHeld = false
            return
        }
    }

    /// A target that was withdrawn while the block device was being made did not count it.
    private func checkStillThere(
        _ plan: Plan, _ entry: Entry, _ export: BlockExport
    ) async throws {
        guard exports.export(named: plan.export.name) == nil || entry.hasEnded else { return }
        throw ControlError(
            .busy,
            "\(plan.target) was detached or destroyed while its block device was being made")
    }

    /// Gives the device its name. Where another block device of the same target, which is read
    /// only then, has the name, this one has that of its loop device alone.
    func makeLink(_ entry: Entry, _ export: BlockExport) async throws {
        let isTaken = entries.values.contains { $0.target == entry.target && $0.link != nil }
        guard !isTaken else { return }
        let (links, name, path) = (links, entry.target, export.path)
        let scans = entry.scansPartitions
        let made = await blocking.run {
            Result { try links.make(name, to: path, partitions: scans) }
        }
        guard let made else { throw ControlError.tooManyOperations }
        entry.link = try made.get()
    }

    func cutOff(_ export: BlockExport) async {
        await export.cutOff()
        ServedBlockDevices.remove(export.deviceNumber)
    }

    /// A session has ended: by `detach` or `cutOff`, or because its target closes or its mount was
    /// taken away. Then the rest goes too.
    private func sessionEnded(_ number: UInt64) async {
        guard let entry = entries[number] else { return }
        entry.hasEnded = true
        guard !entry.isBusy, let export = entry.export else { return }
        entry.isBusy = true
        logger.warning(
            "block device \(export.path) of \(entry.target) has lost its target; its I/O fails from now on"
        )
        await cutOff(export)
        await gone(number)
    }

    func gone(_ number: UInt64) async {
        guard let entry = entries.removeValue(forKey: number) else { return }
        if let export = entry.export {
            ServedBlockDevices.remove(export.deviceNumber)
            await removeLink(entry, export)
            events.record(
                .blockDetached, device: entry.device,
                "\(entry.target) detached from block device \(export.path)")
            logger.info("detached \(entry.target) from block device \(export.path)")
        }
        release(entry)
    }

    func release(_ entry: Entry) {
        entry.isBusy = false
        let waiters = entry.waiters
        entry.waiters = []
        for waiter in waiters { waiter.resume() }
    }

    private func removeLink(_ entry: Entry, _ export: BlockExport) async {
        guard entry.link != nil else { return }
        let (links, name, path) = (links, entry.target, export.path)
        // What stays is replaced when the name is wanted again.
        _ = await blocking.run { links.remove(name, to: path) }
    }

    /// No more block devices; returns those there are.
    func beginStopping() -> [(number: UInt64, entry: Entry)] {
        isStopping = true
        return entries.sorted { $0.key < $1.key }.map { ($0.key, $0.value) }
    }

    func closePools() async {
        if let waiting { _ = await blocking.run { waiting.close() } }
        waiting = nil
    }

    // -- helpers

    func pools() throws(ControlError) -> BlockPools {
        if let waiting { return BlockPools(closing: blocking, waiting: waiting) }
        do throws(RingError) {
            let made = try BlockingPool()
            waiting = made
            return BlockPools(closing: blocking, waiting: made)
        } catch {
            throw ControlError(.failed, "block devices cannot be served: \(error)")
        }
    }

    /// What serves a block device must not have to be read back from one: the kernel may want to
    /// write to it in order to find memory.
    func lockMemory() async {
        guard !isMemoryLocked else { return }
        isMemoryLocked = true
        let failure = await blocking.run { cl_lock_memory() == 0 ? 0 : errno } ?? 0
        guard failure != 0 else { return }
        logger.warning(
            """
            memory cannot be locked (\(errnoText(failure))): under memory pressure block devices may \
            stall; raise the limit of locked memory (ulimit -l)
            """)
    }

    /// The directory of the mounts, made where it is missing, with symbolic links resolved.
    func madePlace() async throws -> String {
        if let place { return place }
        let path = directory
        let outcome = await blocking.run { () -> Result<String, HostError> in
            do throws(HostError) {
                try makePrivateDirectory(path)
                return .success(try resolvedPath(path))
            } catch { return .failure(error) }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        switch outcome {
        case .success(let made):
            place = made
            return made
        case .failure(let failure):
            throw ControlError(.failed, "\(failure); see --runtime-dir")
        }
    }
}

extension ControlError {
    /// The failure of a block export as an error of the control plane.
    init(_ error: BlockExportError) {
        let code: Code =
            switch error.kind {
            case .busy: .busy
            case .failed: .failed
            }
        self.init(code, error.message)
    }
}
