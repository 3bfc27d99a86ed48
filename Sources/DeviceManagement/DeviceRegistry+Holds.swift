package import BlockModel
package import ControlDocuments
package import DataPlane
package import ServiceState

// Who needs a device to stay attached: snapshots hold it from their making to their end, cuts and
// questions about changes pin it while they are under way.

extension DeviceRegistry {
    /// Whether a device is remembered and could not be attached.
    package func isMissing(_ name: String) -> Bool {
        ObjectName(name).map { missing[$0] != nil } ?? false
    }

    /// The snapshots that a device is in.
    package func holders(of name: String) -> [SnapshotLabel] {
        ObjectName(name).flatMap { holders[$0] } ?? []
    }

    /// Keeps devices from being detached until `release`; all or none.
    package func hold(
        _ names: [ObjectName], by snapshot: SnapshotLabel
    ) throws(ControlError) -> [(name: ObjectName, device: AttachedDevice)] {
        guard !isStopping else { throw ControlError.stopping }
        var held: [(ObjectName, AttachedDevice)] = []
        for name in names {
            let device = try free(name)
            guard !device.isLive else {
                throw ControlError(
                    .unsuitable,
                    "device \(name) is live: its writes do not pass through the service, so there is "
                        + "no image of it; make a checkpoint and read its export, or attach it "
                        + "without --live")
            }
            held.append((name, device))
        }
        for name in names { holders[name, default: []].append(snapshot) }
        return held
    }

    private func free(_ name: ObjectName) throws(ControlError) -> AttachedDevice {
        guard let entry = entries[name] else {
            guard let missing = missing[name] else { throw noSuchDevice(name.text) }
            throw isMissing(name.text, missing)
        }
        guard !reserved.contains(name) else { throw isReserved(name) }
        return entry.device
    }

    /// Keeps devices attached for as long as `body` runs; all or none. A detach waits for it.
    package nonisolated(nonsending) func pinning<Value: Sendable>(
        _ names: [ObjectName],
        _ body: ([AttachedDevice]) async throws -> Value
    ) async throws -> Value {
        let devices = try await pin(names)
        let outcome: Result<Value, any Error>
        do { outcome = .success(try await body(devices)) } catch { outcome = .failure(error) }
        await unpin(names)
        return try outcome.get()
    }

    private func pin(_ names: [ObjectName]) throws(ControlError) -> [AttachedDevice] {
        guard !isStopping else { throw ControlError.stopping }
        var devices: [AttachedDevice] = []
        for name in names { devices.append(try free(name)) }
        for name in names { pins[name, default: 0] += 1 }
        return devices
    }

    private func unpin(_ names: [ObjectName]) {
        for name in names {
            guard let count = pins[name] else { preconditionFailure("a pin is taken out once") }
            pins[name] = count == 1 ? nil : count - 1
            if count == 1 { pinWaiters.removeValue(forKey: name)?.resume() }
        }
    }

    /// Returns when nobody pins the device, whose name is reserved: no new pin comes.
    func unpinned(_ name: ObjectName) async {
        guard pins[name] != nil else { return }
        await withCheckedContinuation { pinWaiters[name] = $0 }
    }

    /// From now on the exports of these devices name the checkpoints that are remembered now.
    package func publishBases(of names: [ObjectName]) async {
        for name in names {
            guard let device = entries[name]?.device else { continue }
            let generation = await device.currentGeneration()
            // Detached meanwhile, or attached again, which published them too.
            guard entries[name]?.device === device else { continue }
            // Nothing is waited for from here on, so a later call never loses against this one.
            exports.setBases(generation.map { checkpoints.exportBases(of: name, in: $0) }, of: name)
        }
    }

    /// The generations of the attached devices that queries can name now.
    package func currentGenerations() async -> [ObjectName: Generation] {
        var generations: [ObjectName: Generation] = [:]
        for (name, entry) in entries { generations[name] = await entry.device.currentGeneration() }
        return generations
    }

    /// The device of that name, if it is attached.
    package func attached(_ name: ObjectName) -> AttachedDevice? { entries[name]?.device }

    /// Bytes of the sectors that users of a device see.
    package func sectorBytes(of name: ObjectName) throws(ControlError) -> UInt32 {
        guard let entry = entries[name] else {
            guard let missing = missing[name] else { throw noSuchDevice(name.text) }
            throw isMissing(name.text, missing)
        }
        return entry.device.facts.sectorBytes
    }

    /// The snapshot has left its devices.
    package func release(_ snapshot: SnapshotLabel) {
        for name in holders.keys {
            holders[name]?.removeAll { $0 == snapshot }
            if holders[name]?.isEmpty ?? false { holders[name] = nil }
        }
    }
}
