internal import BlockModel
internal import ControlDocuments
internal import DataPlane
package import FreezePlanning
internal import Host
internal import Logging
internal import RingIO

// What becomes of origins while they are attached: a disk that goes, a file that another one
// replaces under its name. Clients continue with what was attached; opening the path now leads to
// something else.

extension DeviceRegistry {
    /// Time between two looks at the paths of all origins.
    private static let lookInterval = Duration.seconds(10)

    /// Looks at the paths of all origins again and again, until the task is cancelled.
    package func watchOrigins() async {
        while !Task.isCancelled {
            for name in entries.keys.sorted() { await lookAtOrigin(of: name) }
            // Cancelled: the loop ends.
            try? await Task.sleep(for: Self.lookInterval)
        }
    }

    /// Looks whether the path of the device's origin still names it, and records when it does not.
    /// Returns how the origin stands.
    @discardableResult
    func lookAtOrigin(of name: ObjectName) async -> OriginState {
        guard let device = entries[name]?.device else { return .present }
        let known = originStates[name] ?? .present
        guard known != .gone else { return known }
        if let fault = await device.goneFault() {
            originIsGone(name, fault)
            return .gone
        }
        guard let found = await device.originName() else { return known }
        // It was detached meanwhile, or its loop found it gone.
        guard entries[name]?.device === device, originStates[name] != .gone else {
            return originStates[name] ?? .present
        }
        let state = OriginState(found)
        guard state != known else { return state }
        originStates[name] = state
        if let sentence = state.sentence(path: device.facts.path) {
            let message = "device \(name): \(sentence)"
            logger.error("\(message)")
            events.record(.originReplaced, device: name, message)
        } else {
            logger.info("device \(name): \(device.facts.path) names its origin again")
        }
        return state
    }

    /// A loop found that the origin is gone.
    func originIsGone(_ name: ObjectName, _ fault: Fault) {
        guard let device = entries[name]?.device, originStates[name] != .gone else { return }
        originStates[name] = .gone
        let message =
            "device \(name): the origin \(device.facts.path) is gone "
            + "(\(errnoText(fault.errnoValue))): its requests fail and its snapshots are corrupted; "
            + "when it is back, detach the device and attach it again"
        logger.error("\(message)")
        events.record(.deviceGone, device: name, errno: fault.errnoValue, message)
    }

    /// What the origins stand on: no filesystem of theirs is frozen. Those of live devices are the
    /// very ones that cuts freeze.
    package func freezeExclusions() -> [FreezeExclusion] {
        entries.filter { !$0.value.device.isLive }.map { name, entry in
            FreezeExclusion(
                what: "the origin of device \(name), \(entry.device.facts.path)",
                devices: entry.device.underlyingDevices)
        }
    }

    /// What this machine offers, and how an origin would be reached.
    package func probe(_ path: String?) async throws -> MachineProbe {
        if let path {
            guard path.hasPrefix("/"), !path.utf8.contains(0), path.utf8.count < 4096 else {
                throw ControlError(.invalid, "path=\(path): give an absolute path")
            }
        }
        return try await blocking.runOnNamedPath(.paths, "probe of \(path ?? "this machine")") {
            Result { try MachineProbe.run(path: path) }
        }.get()
    }
}
