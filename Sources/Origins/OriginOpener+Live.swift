internal import BlockModel
internal import ChangeTracking
internal import Glibc
package import LiveTracking

// Opening of origins that their users keep using, and whose changes the kernel marks.

extension OriginOpener {
    /// Opens an origin, for use by others too when `live` is to track it.
    package static func open(
        _ path: String, _ isReadOnly: Bool, _ sectorBytes: UInt32?, _ live: LiveTracker?
    ) throws(AttachError) -> OpenedOrigin {
        guard let live else {
            return try open(path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes)
        }
        var origin: OpenedOrigin
        do throws(AttachError) {
            origin = try open(
                path: path, isReadOnly: true, sectorBytes: sectorBytes, isShared: true)
        } catch {
            // Somebody may have asked for any disk of the machine.
            throw AttachError(error.kind == .failed ? .unsuitable : error.kind, error.message)
        }
        do throws(AttachError) {
            origin.live = try track(origin, live)
            return origin
        } catch {
            origin.close()
            throw error
        }
    }

    private static func track(
        _ origin: OpenedOrigin, _ tracker: LiveTracker
    ) throws(AttachError) -> LiveWindow {
        let path = origin.facts.path
        var facts = stat()
        guard origin.facts.isBlockDevice, fstat(origin.descriptor, &facts) == 0,
            let place = LivePlace(of: DeviceNumber(statNumber: UInt64(facts.st_rdev)))
        else {
            throw AttachError(
                .unsuitable,
                "origin \(path) is not a block device, and only block devices can be tracked in use; name the "
                    + "device, its mount point or UUID=..., or attach it without --live")
        }
        if let refusal = place.facts.refusal {
            throw AttachError(
                .unsuitable, "origin \(path) cannot be tracked in use: \(refusal.sentence)")
        }
        do throws(LiveError) {
            return try tracker.track(place)
        } catch {
            throw AttachError(
                error.kind == .unsuitable ? .unsuitable : .failed,
                "origin \(path) cannot be tracked in use: \(error)")
        }
    }
}

extension OriginInspector {
    /// A live origin: its marks tell of writes, and counters need not.
    static func record(of descriptor: Int32, live: LiveWindow) -> OriginRecord? {
        guard let found = record(of: descriptor, probe: nil) else { return nil }
        return OriginRecord(
            identity: found.identity, state: .unknown(size: found.state.size),
            liveToken: live.token)
    }
}
