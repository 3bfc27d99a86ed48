internal import BlockModel
internal import CLinux
internal import DataPlane
internal import ExportBlock
internal import ExportNBD
internal import FoundationEssentials
internal import Glibc
internal import Logging
internal import RingIO
internal import Synchronization

// The local block devices of the service: attach, list, detach.
//
// Invariants
// - A block device is a user of its target, so a device is not detached below it unnoticed.
// - An entry is in `entries` from the moment its loop device exists until everything of it is
//   gone; one under operation is busy, and a second operation on it is refused.
// - A target that is written through a block device has no other one: two page caches over one
//   disk destroy what is on it.
// - Every mount lies in a directory of its own under `directory`, within the runtime directory that
//   no other service uses.

/// The block devices of the service; see the head of this file.
package actor BlockRegistry {
    private final class Entry {
        /// Set when the loop device exists.
        var export: BlockExport?
        let target: String
        let device: ObjectName
        let isReadOnly: Bool
        let scansPartitions: Bool
        var size: UInt64
        let sectorBytes: UInt32
        let attachedAt = Date()
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
        }
    }

    /// What is to be made.
    private struct Plan {
        var target: String
        var device: ObjectName
        var export: ExportDescription
        var sectorBytes: UInt32
        var isReadOnly: Bool
        var scansPartitions: Bool
    }

    /// Most block devices.
    package static let capacity = 256
    /// How long the end of the service waits for what filesystems have in memory.
    private static let syncTime = Duration.seconds(10)

    private let directory: String
    private let devices: DeviceRegistry
    private let snapshots: SnapshotRegistry
    private let exports: ExportTable
    private let events: EventLog
    private let blocking: BlockingPool
    private let logger: Logger
    private var entries: [UInt64: Entry] = [:]
    private var lastNumber: UInt64 = 0
    private var waiting: BlockingPool?
    /// The directory, made, with symbolic links resolved.
    private var place: String?
    private var isMemoryLocked = false
    private var isStopping = false

    init(
        directory: String, devices: DeviceRegistry, snapshots: SnapshotRegistry,
        exports: ExportTable, events: EventLog, blocking: BlockingPool, logger: Logger
    ) {
        self.directory = directory
        self.devices = devices
        self.snapshots = snapshots
        self.exports = exports
        self.events = events
        self.blocking = blocking
        self.logger = logger
    }

    // -- start

    /// Takes away what a killed service left in the runtime directory.
    func removeLeftovers() async throws {
        let path = directory
        let isThere = await blocking.run { access(path, F_OK) == 0 } ?? false
        guard isThere else { return }
        let place = try await madePlace()
        let found = await (try pools()).waiting.run { BlockLeftovers.remove(under: place) }
        for sentence in found ?? [] { logger.warning("\(sentence)") }
    }

    /// A device has another size: its block device follows, images keep theirs.
    func deviceResized(_ name: ObjectName) async {
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
        }
    }

    // -- attach

    /// Makes a block device for a device or an image.
    package func attach(
        _ name: BlockTargetName, isReadOnly: Bool, scansPartitions: Bool
    ) async throws -> BlockDocument {
        guard !isStopping else { throw ControlError(.busy, "the service is stopping") }
        let plan = try await plan(name, isReadOnly: isReadOnly, scansPartitions: scansPartitions)
        try checkUnused(plan)
        guard entries.count < Self.capacity else {
            throw ControlError(
                .busy,
                "\(Self.capacity) block devices are attached, the most there may be; detach one")
        }
        lastNumber += 1
        let number = lastNumber
        let entry = Entry(plan)
        entries[number] = entry
        do {
            let export = try await open(plan, number)
            entry.export = export
            try await checkStillThere(plan, entry, export)
        } catch {
            await gone(number)
            throw error
        }
        entry.isBusy = false
        let path = entry.export?.path ?? ""
        events.record(
            .blockAttached, device: plan.device, "\(plan.target) attached as block device \(path)")
        logger.info("attached \(plan.target) as block device \(path)")
        return document(of: entry)
    }

    private func plan(
        _ name: BlockTargetName, isReadOnly: Bool, scansPartitions: Bool
    ) async throws -> Plan {
        guard let device = ObjectName(name.device) else {
            throw ControlError(
                .notFound,
                "there is no device \(name.device); `stillpoint device list` names "
                    + "those there are")
        }
        let sectorBytes = try await devices.sectorBytes(of: device)
        var target = device.text
        if let snapshot = name.snapshot {
            target += "@\(try await snapshots.label(of: snapshot))"
        }
        let isWritableImage = name.snapshot != nil && !isReadOnly
        guard let export = exports.export(named: target + (isWritableImage ? ":rw" : "")) else {
            throw ControlError(
                .notFound,
                name.snapshot == nil
                    ? "device \(device) is being detached"
                    : "there is no image \(target); the snapshot is not taken, or does not have "
                        + "this device")
        }
        return Plan(
            target: target, device: device, export: export, sectorBytes: sectorBytes,
            isReadOnly: isReadOnly || export.isReadOnly, scansPartitions: scansPartitions)
    }

    private func checkUnused(_ plan: Plan) throws(ControlError) {
        let others = entries.values.filter { $0.target == plan.target }
        guard let other = others.first(where: { !$0.isReadOnly || !plan.isReadOnly }) else {
            return
        }
        throw ControlError(
            .busy,
            "\(plan.target) is attached as block device \(other.export?.path ?? "already"); two "
                + "of them, one written, would destroy what is on it; use that one, or detach it "
                + "first")
    }

    private func open(_ plan: Plan, _ number: UInt64) async throws -> BlockExport {
        let place = try await madePlace()
        let pools = try pools()
        await lockMemory()
        do throws(BlockExportError) {
            let export = try await BlockExport.open(
                BlockExportRequest(
                    name: plan.target, directory: "\(place)/\(number)",
                    loop: plan.export.loop, target: plan.export.target,
                    sectorBytes: plan.sectorBytes, isReadOnly: plan.isReadOnly,
                    scansPartitions: plan.scansPartitions),
                pools: pools
            ) { [weak self] in
                Task { await self?.sessionEnded(number) }
            }
            ServedBlockDevices.add(
                export.deviceNumber,
                of: plan.target == plan.device.text ? plan.device : nil)
            return export
        } catch { throw ControlError(error) }
    }

    /// A target that was withdrawn while the block device was being made did not count it.
    private func checkStillThere(
        _ plan: Plan, _ entry: Entry, _ export: BlockExport
    ) async throws {
        guard exports.export(named: plan.export.name) == nil || entry.hasEnded else { return }
        await cutOff(export)
        throw ControlError(.busy, "\(plan.target) was detached or destroyed meanwhile")
    }

    // -- list

    /// All block devices, by path.
    package func list() -> [BlockDocument] {
        entries.sorted { $0.key < $1.key }.filter { $0.value.export != nil }
            .map { document(of: $0.value) }
    }

    private func document(of entry: Entry) -> BlockDocument {
        BlockDocument(
            path: entry.export?.path ?? "", target: entry.target, readOnly: entry.isReadOnly,
            partitions: entry.scansPartitions, size: entry.size, sectorSize: entry.sectorBytes,
            attachedAt: entry.attachedAt)
    }

    // -- detach

    /// Takes a block device away, `loopN` or `/dev/loopN`; refused as busy while it is in use.
    package func detach(_ name: String) async throws -> BlockDocument {
        let path = name.hasPrefix("/") ? name : "/dev/" + name
        guard let (number, entry) = entries.first(where: { $0.value.export?.path == path }) else {
            throw ControlError(
                .notFound,
                "\(path) is no block device of this service; `stillpoint block list` names those "
                    + "there are")
        }
        let last = document(of: entry)
        try await detach(number, entry)
        return last
    }

    private func detach(_ number: UInt64, _ entry: Entry) async throws {
        guard let export = entry.export, !entry.isBusy else {
            throw ControlError(
                .busy,
                "block device \(entry.target) is being attached or detached; try again in "
                    + "a moment")
        }
        entry.isBusy = true
        let fault: Fault?
        do throws(BlockExportError) {
            fault = try await export.detach()
        } catch {
            entry.isBusy = false
            throw ControlError(error)
        }
        await gone(number)
        if let fault {
            throw ControlError(
                .failed,
                "block device \(export.path) is detached, but its last flush failed "
                    + "(\(errnoText(fault.errnoValue))): what was not flushed may be lost")
        }
    }

    /// Makes way for the detach of a device: its block devices make it busy, unless `isForced`:
    /// then they are detached, or cut off where they are in use.
    func clear(device name: String, isForced: Bool) async throws {
        guard let device = ObjectName(name) else { return }
        let mine = entries.filter { $0.value.device == device }
        if !isForced {
            // Images make it busy too; that is said of their snapshot.
            let paths = mine.values.filter { $0.target == name }.map {
                $0.export?.path ?? "/dev/loop?"
            }
            guard !paths.isEmpty else { return }
            let list = paths.sorted().joined(separator: ", ")
            throw ControlError(
                .busy,
                "device \(name) is attached as block device \(list); detach that first "
                    + "(stillpoint block detach), or detach with --force",
                details: ["blocks": list])
        }
        for (number, entry) in mine { await end(number, entry) }
    }

    /// The snapshot is destroyed: what is left of the block devices of its images goes.
    func endImages(of label: String) async {
        for (number, entry) in entries where entry.target == "\(entry.device)@\(label)" {
            await end(number, entry)
        }
    }

    /// Detaches, or cuts off what is in use. Returns when it is gone.
    private func end(_ number: UInt64, _ entry: Entry) async {
        while entry.isBusy {
            guard entries[number] === entry else { return }
            await withCheckedContinuation { entry.waiters.append($0) }
        }
        guard entries[number] === entry, let export = entry.export else { return }
        do {
            try await detach(number, entry)
        } catch {
            guard entries[number] === entry else { return logger.warning("\(error)") }
            logger.warning("\(error); its I/O fails from now on")
            entry.isBusy = true
            await cutOff(export)
            await gone(number)
        }
    }

    private func cutOff(_ export: BlockExport) async {
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
        logger.warning("block device \(export.path) of \(entry.target) has lost its target")
        await cutOff(export)
        await gone(number)
    }

    private func gone(_ number: UInt64) async {
        guard let entry = entries.removeValue(forKey: number) else { return }
        if let export = entry.export {
            ServedBlockDevices.remove(export.deviceNumber)
            events.record(
                .blockDetached, device: entry.device,
                "\(entry.target) detached from block device \(export.path)")
            logger.info("detached \(entry.target) from block device \(export.path)")
        }
        entry.isBusy = false
        let waiters = entry.waiters
        entry.waiters = []
        for waiter in waiters { waiter.resume() }
    }

    // -- end

    /// Takes all block devices away for the service's end. Filesystems on those that are still
    /// mounted are written back first, as far as that is quick; then their I/O fails.
    func closeAll() async {
        isStopping = true
        let numbers = Set(entries.values.compactMap { $0.export?.deviceNumber })
        if !numbers.isEmpty, let waiting {
            await withTaskGroup(of: Void.self) { group in
                group.addTask {
                    _ = await waiting.run { MountedFilesystems.writeBack(on: numbers) }
                }
                // Ends early only when it is cancelled because the other one came first.
                group.addTask { try? await Task.sleep(for: Self.syncTime) }
                await group.next()
                group.cancelAll()
            }
        }
        for (number, entry) in entries { await end(number, entry) }
        if let waiting { _ = await blocking.run { waiting.close() } }
        waiting = nil
    }

    // -- helpers

    private func pools() throws(ControlError) -> BlockPools {
        if let waiting { return BlockPools(closing: blocking, waiting: waiting) }
        do throws(RingError) {
            let made = try BlockingPool(threadCount: 2, ownsDescriptors: true)
            waiting = made
            return BlockPools(closing: blocking, waiting: made)
        } catch {
            throw ControlError(.failed, "block devices cannot be served: \(error)")
        }
    }

    /// What serves a block device must not have to be read back from one: the kernel may want to
    /// write to it in order to find memory.
    private func lockMemory() async {
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
    private func madePlace() async throws -> String {
        if let place { return place }
        let path = directory
        let outcome = await blocking.run { () -> Result<String, SystemFailure> in
            do throws(SystemFailure) {
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
    /// The word of the block export for a failure, in the control plane's.
    init(_ error: BlockExportError) {
        let code: Code =
            switch error.kind {
            case .busy: .busy
            case .failed: .failed
            }
        self.init(code, error.message)
    }
}
