package import BlockModel
internal import Synchronization

/// The local block devices that this service serves: nothing it needs in order to serve may stand
/// on one of them, or its requests would wait for themselves.
package enum ServedBlockDevices {
    // By number; the name is that of the device it shows, none for an image.
    private static let served = Mutex<[UInt64: ObjectName?]>([:])

    /// Enters a block device by its number, as in `st_rdev`. `device`: what it shows, if that is a
    /// device and no image.
    package static func add(_ number: UInt64, of device: ObjectName?) {
        served.withLock { $0[number] = .some(device) }
    }

    /// Takes a device out.
    package static func remove(_ number: UInt64) { served.withLock { $0[number] = nil } }

    static func contains(_ number: UInt64) -> Bool { served.withLock { $0[number] != nil } }

    /// The block devices that show devices, by device: filesystems on them are frozen for cuts.
    package static func byDevice() -> [ObjectName: Set<DeviceNumber>] {
        served.withLock { served in
            served.reduce(into: [:]) { found, entry in
                guard let device = entry.value else { return }
                found[device, default: []].insert(DeviceNumber(statNumber: entry.key))
            }
        }
    }

    /// True when one of them is among `foundations`.
    package static func carry(_ foundations: Set<Foundation>) -> Bool {
        foundations.contains { $0.inode == 0 && contains($0.device) }
    }
}
