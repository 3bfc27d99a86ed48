internal import ControlDocuments
internal import ExportBlock
internal import Glibc
internal import Host
internal import Logging
internal import Origins
internal import RingIO
package import ServiceState

// From one service to the next: what the former one left is taken over, what is remembered is
// made again, and at the end what can wait for the next one is left to it.

extension BlockRegistry {
    /// How long the end of the service waits for what filesystems have in memory.
    private static let syncTime = Duration.seconds(10)

    // -- start

    /// Takes over what the previous service left, removes what cannot be continued, then
    /// makes what is remembered and what the configuration asks for. What is remembered and cannot
    /// be made stays remembered and keeps nothing else from being served.
    package func start(
        _ held: [HeldDevice], remembered: [RememberedBlock], wanted: [RememberedBlock]
    ) async throws {
        for device in held { await adopt(device) }
        if !waitingForDevice.isEmpty { letGoLater() }
        try await removeStale()
        await guardian.finishThawing()
        for block in remembered where !wanted.contains(where: { $0.device == block.device }) {
            do {
                try await attachAgain(block)
            } catch {
                logger.error("block device of \(block.device) could not be made: \(error)")
                absent.append(block)
            }
        }
        for block in wanted { try await attachAgain(block) }
        if !wanted.isEmpty { try await save() }
    }

    private func attachAgain(_ block: RememberedBlock) async throws {
        let isThere = entries.values.contains { $0.isDevice && $0.target == block.device }
        guard !isThere else { return }
        _ = try await attach(
            try BlockTargetName(block.device),
            AttachOptions(isReadOnly: block.readOnly, scansPartitions: block.partitions))
    }

    /// The device is there again: so is its block device, if one is remembered.
    package func deviceAttached(_ name: String) async {
        await adoptWaiting(of: name)
        guard let place = absent.firstIndex(where: { $0.device == name }) else { return }
        let block = absent.remove(at: place)
        do {
            try await attachAgain(block)
        } catch {
            logger.error("block device of \(name) could not be made: \(error)")
            absent.append(block)
        }
    }

    /// Takes away what a dead service left in the runtime directory.
    private func removeStale() async throws {
        let path = directory
        let isThere = await blocking.run { access(path, F_OK) == 0 } ?? false
        guard isThere else { return }
        let place = try await madePlace()
        let kept = entries.values.map(\.directory) + waitingForDevice.map(\.note.directory)
        do throws(BlockExportError) {
            let found = try await BlockErrand.removeStale(place, keeping: kept)
                .run(on: try poolsOrFail().waiting)
            for sentence in found { logger.warning("\(sentence)") }
        } catch {
            logger.error("what a dead service left in \(place) stays: \(error)")
        }
    }

    private func poolsOrFail() throws(BlockExportError) -> BlockPools {
        do throws(ControlError) { return try pools() } catch {
            throw BlockExportError(.failed, error.message)
        }
    }

    // -- takeover

    private func adopt(_ held: HeldDevice) async {
        // The key is at least 1, and numbers of block devices are not used twice.
        _ = nextNumber(after: held.key - 1)
        do {
            guard let note = BlockNote(held.note) else {
                throw ControlError(
                    .failed, "what the service before noted of a block device cannot be read")
            }
            guard let path = note.path else {
                throw ControlError(
                    .failed, "block device of \(note.device) was being attached")
            }
            if await devices.isMissing(note.device) {
                logger.error(
                    "block device \(path) waits for device \(note.device), which is missing")
                waitingForDevice.append((held, note))
                return
            }
            let entry = try await adopt(held, note)
            logger.info(
                """
                took over block device \(entry.export?.path ?? "") of \(entry.target)\
                \(held.isDrained ? "" : " from a service that was killed")
                """)
        } catch {
            logger.error("\(error); its users get errors")
            await guardian.release(held.key)
            entries[held.key] = nil
        }
    }

    /// A device that was missing is attached: its block device continues.
    func adoptWaiting(of device: String) async {
        guard let place = waitingForDevice.firstIndex(where: { $0.note.device == device }) else {
            return
        }
        let (held, note) = waitingForDevice[place]
        guard !(await devices.isMissing(device)),
            waitingForDevice.contains(where: { $0.held.key == held.key })
        else { return }
        waitingForDevice.removeAll { $0.held.key == held.key }
        do {
            _ = try await adopt(held, note)
            logger.info("took over block device \(note.path ?? "") of \(device)")
        } catch {
            logger.error("\(error); its users get errors")
            await guardian.release(held.key)
            entries[held.key] = nil
        }
    }

    /// Users wait no longer for a missing device than they would for a service.
    private func letGoLater() {
        let limit = Duration.seconds(Int64(guardian.restartLimitSeconds))
        Task { [weak self] in
            // Not cancelled by anybody.
            try? await Task.sleep(for: limit)
            await self?.letGoWaiting()
        }
    }

    private func letGoWaiting() async {
        let late = waitingForDevice
        guard !late.isEmpty else { return }
        waitingForDevice = []
        for (held, note) in late {
            logger.error(
                """
                device \(note.device) did not come back within \(guardian.restartLimitSeconds) s: its block \
                device \(note.path ?? "") is given up, and its users get errors
                """)
            await guardian.release(held.key)
        }
        do { try await removeStale() } catch { logger.error("\(error)") }
    }

    private func adopt(
        _ held: HeldDevice, _ note: BlockNote
    ) async throws -> Entry {
        guard let path = note.path, let deviceNumber = note.deviceNumber else {
            throw ControlError(.failed, "block device of \(note.device) was being attached")
        }
        var plan = try await plan(
            try BlockTargetName(note.device),
            AttachOptions(
                isReadOnly: note.readOnly, scansPartitions: note.partitions,
                isTemporary: note.temporary))
        guard plan.sectorBytes == note.sectorSize, plan.isReadOnly == note.readOnly else {
            throw ControlError(
                .failed,
                "device \(note.device) has other sectors or another mode than its block device "
                    + "\(path)")
        }
        plan.directory = note.directory
        plan.former = note
        let entry = Entry(plan)
        entry.isHeld = true
        entries[held.key] = entry
        let pools = try pools()
        await lockMemory()
        guard await guardian.setDrained(held.key, false) || held.isDrained else {
            throw ControlError(.failed, "block device \(path): no guardian holds it")
        }
        let descriptor = fcntl(held.descriptor, F_DUPFD_CLOEXEC, 0)
        guard descriptor >= 0 else {
            throw ControlError(.failed, "block device \(path): \(errnoText(errno))")
        }
        do throws(BlockExportError) {
            let export = try await BlockExport.adopt(
                BlockAdoption(
                    path: path, deviceNumber: deviceNumber, descriptor: descriptor,
                    isDrained: held.isDrained),
                plan.request(), holding: holding(held.key, entry), pools: pools,
                ended: sessionEnd(held.key))
            entry.export = export
            served(export, entry)
        } catch { throw ControlError(error) }
        await settle(entry, note)
        return entry
    }

    /// Brings an adopted device up to date, and ends the operation on it.
    private func settle(_ entry: Entry, _ note: BlockNote) async {
        guard let export = entry.export else { return }
        if entry.size != note.size, await !export.updateSize() {
            logger.error("block device \(export.path) could not take over the size of its device")
        }
        do {
            try await makeLink(entry, export)
        } catch { logger.error("\(error)") }
        await noteAnew(entry)
        release(entry)
        events.record(
            .blockAttached, device: entry.device,
            "block device \(entry.link ?? export.path) of \(entry.target) was taken over")
    }

    // -- end

    /// The end of the service: devices in use are left to the next one, as far as the guardian
    /// holds them; those that nobody uses are taken away, and made again under their names by the
    /// next start. The others, images among them, are written back as far as that is quick; then
    /// the I/O of their users fails.
    package func closeAll() async {
        let all = beginStopping()
        var ending: [(number: UInt64, entry: Entry)] = []
        for (number, entry) in all where await !handOver(number, entry) {
            ending.append((number, entry))
        }
        await writeBack(ending.compactMap { $0.entry.export?.deviceNumber })
        for (number, entry) in ending { await end(number, entry) }
        await closePools()
    }

    /// False when it has to end with this service.
    private func handOver(_ number: UInt64, _ entry: Entry) async -> Bool {
        await settled(number, entry)
        if await removeUnused(number, entry) { return true }
        guard entries[number] === entry, let export = entry.export, entry.isHeld,
            await guardian.setDrained(number, false)
        else { return false }
        entry.isBusy = true
        await export.handOver()
        let isKnown = await guardian.setDrained(number, true)
        ServedBlockDevices.remove(export.deviceNumber)
        entries[number] = nil
        release(entry)
        if !isKnown {
            // The next service asks the kernel what is in hand, which is nothing.
            logger.warning("the guardian does not know that \(export.path) was stopped cleanly")
        }
        return true
    }

    /// False when somebody uses it, or it cannot be taken away.
    private func removeUnused(_ number: UInt64, _ entry: Entry) async -> Bool {
        do {
            try await detach(number, entry)
        } catch let error as ControlError where error.code == .busy {
            return false
        } catch { logger.error("\(error)") }
        return entries[number] !== entry
    }

    private func writeBack(_ numbers: [UInt64]) async {
        guard !numbers.isEmpty else { return }
        let blocks = numbers
        await withTaskGroup(of: Void.self) { group in
            group.addTask {
                do throws(BlockExportError) {
                    _ = try await BlockErrand.writeBack(blocks)
                        .run(on: try await self.poolsOrFail().waiting)
                } catch { self.logger.warning("\(error)") }
            }
            // Ends early only when it is cancelled because the other one came first.
            group.addTask { try? await Task.sleep(for: Self.syncTime) }
            await group.next()
            group.cancelAll()
        }
    }
}
