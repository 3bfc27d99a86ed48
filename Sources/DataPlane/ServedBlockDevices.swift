internal import Synchronization

/// The local block devices that this service serves: nothing it needs in order to serve may stand
/// on one of them, or its requests would wait for themselves.
package enum ServedBlockDevices {
    private static let numbers = Mutex<Set<UInt64>>([])

    /// Enters a device by its number, as in `st_rdev`.
    package static func add(_ number: UInt64) { numbers.withLock { _ = $0.insert(number) } }

    /// Takes a device out.
    package static func remove(_ number: UInt64) { numbers.withLock { _ = $0.remove(number) } }

    static func contains(_ number: UInt64) -> Bool { numbers.withLock { $0.contains(number) } }

    /// True when one of them is among `foundations`.
    static func carry(_ foundations: Set<Foundation>) -> Bool {
        foundations.contains { $0.inode == 0 && contains($0.device) }
    }
}
