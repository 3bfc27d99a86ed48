package import BlockModel
internal import ChangeTracking
package import ControlDocuments
internal import DataPlane
internal import Devices
internal import Generations
internal import Host
package import LiveTracking
internal import Logging
package import ServiceState

// What happens to the generations of devices: they are reported, begun again when tracking was
// lost, and kept when the origin has another size.

/// Where the generations of devices are kept, and who looks after them.
package struct TrackingPlaces: Sendable {
    let runtimeDirectory: String
    let bootID: UniqueID
    let guardian: Guardian
    /// Marks writes of live devices.
    let live: LiveTracker

    package init(
        runtimeDirectory: String, bootID: UniqueID, guardian: Guardian, live: LiveTracker
    ) {
        self.runtimeDirectory = runtimeDirectory
        self.bootID = bootID
        self.guardian = guardian
        self.live = live
    }
}

extension AttachRequest {
    /// The same, with what was said about the device before and the command line does not repeat.
    func remembering(_ old: RememberedDevice) throws(ControlError) -> AttachRequest {
        try AttachRequest(
            name: name.text, path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes,
            isExclusive: isExclusive || old.exclusive ?? false, isLive: old.live ?? false)
    }
}

extension DeviceRegistry {
    /// Shortest and longest time from a loss of tracking to the next attempt to track again, but
    /// for the first loss, after which it is made at once.
    private static let renewalDelay = Duration.seconds(1)
    private static let renewalDelayMax = Duration.seconds(60)

    /// Tells what became of the generation of a device that was attached.
    func reportGeneration(of entry: Entry) {
        let name = entry.request.name
        guard let reason = entry.device.newGenerationReason else {
            return logger.info("history of device \(name) continued")
        }
        guard reason != .firstAttach else { return }
        reportNewGeneration(of: name, reason)
    }

    private func reportNewGeneration(of name: ObjectName, _ reason: NewGenerationReason) {
        let message =
            "device \(name) has a new history: \(reason.sentence); make a full backup"
        logger.warning("\(message)")
        events.record(.generationNew, device: name, message)
    }

    /// Something happened to a device while it is attached.
    func noticed(_ notice: DeviceNotice, of name: ObjectName) async {
        switch notice {
        case .trackingLost(let reason):
            logger.error("changes of device \(name) are no longer tracked: \(reason.sentence)")
            await renewGeneration(of: name)
        case .generationBegan(_, let reason):
            renewedAt[name] = .now
            reportNewGeneration(of: name, reason)
            await publishBases(of: [name])
        case .resized(let old, let new):
            updateExport(of: name, size: new)
            let message = "device \(name) was resized from \(old) to \(new) bytes"
            logger.info("\(message)")
            events.record(.deviceResized, device: name, message)
            await sizeChanged(of: name)
        case .originGone(let fault): originIsGone(name, fault)
        case .mapNotSaved(let reason):
            logger.error(
                """
                the change map of device \(name) was not saved: \(reason); its next attach begins \
                a new history
                """)
        }
    }

    /// Begins a new generation as soon as there is room for its map.
    private func renewGeneration(of name: ObjectName) async {
        var delay = Self.renewalDelay
        if let last = renewedAt[name], last.duration(to: .now) < Self.renewalDelayMax {
            await sleep(for: delay)
        }
        while !isStopping, let device = entries[name]?.device,
            await device.progress()?.isTrackingLost ?? false
        {
            if await device.canTrackAgain(), await beginsAnew(device, name) { continue }
            await sleep(for: delay)
            delay = min(delay * 2, Self.renewalDelayMax)
        }
    }

    /// Makes a cut, which begins the new generation; false when it has to be tried again.
    private func beginsAnew(_ device: AttachedDevice, _ name: ObjectName) async -> Bool {
        let cuts = cuts
        do {
            return try await pinning([name]) { devices in
                guard devices[0] === device else { return true }
                let member = CutMember(device: device, snapshot: nil)
                return await cuts.makeCut([member], isBase: false).fault == nil
            }
        } catch {
            logger.info("tracking of device \(name) cannot begin again yet: \(error)")
            return false
        }
    }

    private func sleep(for delay: Duration) async {
        // Cancelled: then the service ends, which the caller looks for.
        try? await Task.sleep(for: delay)
    }

    /// Clients that connect from now on see the size.
    private func updateExport(of name: ObjectName, size: UInt64) {
        guard var entry = entries[name], entry.export.size != size else { return }
        entry.export.size = size
        entries[name] = entry
        exports.withdraw(name.text)
        exports.publish(entry.export, changes: .device(name))
    }

    // -- resize

    /// Takes over the size that the origin has now.
    package func resize(_ name: String) async throws -> DeviceDocument {
        guard let checked = ObjectName(name) else { throw noSuchDevice(name) }
        try reserve(checked)
        defer { reserved.remove(checked) }
        guard let entry = entries[checked] else {
            guard let missing = missing[checked] else { throw noSuchDevice(name) }
            throw isMissing(name, missing)
        }
        let old = entry.device.facts.size
        let new: UInt64
        switch await entry.device.originSize() {
        case .success(let size): new = size
        case .failure(let obstacle): throw refusal(of: obstacle, entry)
        }
        guard new != old else { return await document(of: entry) }
        if new < old, let held = holders[checked], !held.isEmpty {
            let list = held.map(\.description).joined(separator: ", ")
            throw ControlError(
                .inUse,
                "device \(name) cannot shrink from \(old) to \(new) bytes while snapshot(s) "
                    + "\(list) need what would be lost; destroy them first",
                details: ["snapshots": list])
        }
        let outcome = await cuts.makeCut(
            [CutMember(device: entry.device, snapshot: nil)], isBase: false)
        if let fault = outcome.fault {
            throw ControlError(
                .busy,
                "device \(name) could not be resized (\(errnoText(fault.errnoValue))): writers "
                    + "would have waited too long; nothing was changed, try again")
        }
        if let obstacle = outcome.resizeObstacles.first ?? nil {
            throw refusal(of: obstacle, entry)
        }
        updateExport(of: checked, size: entry.device.facts.size)
        await sizeChanged(of: checked)
        return await document(of: entries[checked] ?? entry)
    }

    private func refusal(of obstacle: ResizeObstacle, _ entry: Entry) -> ControlError {
        let (name, path) = (entry.request.name, entry.device.facts.path)
        switch obstacle {
        case .unreadable(let reason):
            return ControlError(
                .failed, "device \(name): the size of \(path) cannot be read (\(errnoText(reason)))"
            )
        case .unsuitable(let size, let multiple):
            return ControlError(
                .unsuitable,
                "device \(name): \(path) has \(size) bytes now, which is not a multiple of \(multiple) "
                    + "that a device could have; give it another size")
        case .noRoom(let reason):
            return ControlError(
                .noSpace,
                "device \(name): its change map cannot grow (\(errnoText(reason))); free space in "
                    + "the runtime directory and try again")
        }
    }
}
