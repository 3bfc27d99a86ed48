internal import BlockModel
internal import Glibc
internal import OriginIO
internal import SnapshotCore

// Is the origin still there? It is asked after a request of it failed.

extension Device {
    /// Shortest time between two questions to an origin whose requests fail, nanoseconds.
    private static let checkIntervalNanoseconds: UInt64 = 1_000_000_000

    /// A request of the origin failed: is it gone?
    func originFailed(_ fault: Fault) {
        guard goneFault == nil else { return }
        if fault.isOfMissingDevice { return originGone(fault) }
        // A disk that is taken away answers with other errors too.
        guard origin.facts.isBlockDevice, !isCheckingOrigin,
            loop.now >= originCheckedAt + Self.checkIntervalNanoseconds
        else { return }
        originCheckedAt = loop.now
        isCheckingOrigin = true
        if !origin.access.checkPresence(origin) { isCheckingOrigin = false }
    }

    /// The origin was asked.
    func originChecked(_ fault: Fault?) {
        isCheckingOrigin = false
        if let fault { originGone(fault) }
        usersChanged()
    }

    /// The origin is gone: requests keep failing by themselves, and no image can be read any more.
    private func originGone(_ fault: Fault) {
        guard goneFault == nil else { return }
        goneFault = fault
        notify(.originGone(fault))
        engine.originLost(fault: fault)
        engineTouched()
    }
}

extension Fault {
    /// The kernel says so of a device that is not there (any more): ENXIO, ENODEV, ENOMEDIUM.
    fileprivate var isOfMissingDevice: Bool {
        [ENXIO, ENODEV, ENOMEDIUM].contains(errnoValue)
    }
}
