package import ExportNBD
internal import Synchronization

/// What clients can open at this moment: written by the registry, read by exports during
/// handshakes, on any thread.
package final class ExportTable: ExportDirectory {
    private let exports = Mutex<[ExportDescription]>([])

    package init() {}

    /// Enters an export; from here on clients find it.
    func publish(_ export: ExportDescription) {
        exports.withLock { exports in
            let place = exports.firstIndex { $0.name > export.name } ?? exports.endIndex
            exports.insert(export, at: place)
        }
    }

    /// Takes an export out; connections that are open stay open.
    func withdraw(_ name: String) {
        exports.withLock { exports in exports.removeAll { $0.name == name } }
    }

    package func allExports() -> [ExportDescription] { exports.withLock { $0 } }

    package func export(named name: String) -> ExportDescription? {
        exports.withLock { exports in
            guard name.isEmpty else { return exports.first { $0.name == name } }
            // Images do not count: a snapshot must not change what the empty name means.
            let devices = exports.filter { !$0.name.contains("@") }
            return devices.count == 1 ? devices[0] : nil
        }
    }
}
