internal import BlockModel
package import ExportNBD
internal import Synchronization

// What clients can open at this moment: written by the registries, read by exports during
// handshakes, on any thread.
//
// Invariants
// - An export tells changes by the list of its device's bases at the moment it is looked up; what
//   a client negotiated keeps its meaning, for its requests carry the cut itself.
// - An image names no cut later than its own.

/// Which changes an export tells.
enum ExportHistory: Sendable {
    /// None: what is written through the export is no change of the device.
    case none
    /// Those of the device until now.
    case device(ObjectName)
    /// Those of the device until the cut of an image.
    case image(ObjectName, cut: TrackingBase)
}

/// The exports of the service; see the head of this file.
package final class ExportTable: ExportDirectory {
    private struct Entry {
        var export: ExportDescription
        var history: ExportHistory
    }

    private struct State {
        /// By name.
        var entries: [Entry] = []
        var bases: [ObjectName: ExportBases] = [:]

        func described(_ entry: Entry) -> ExportDescription {
            var export = entry.export
            switch entry.history {
            case .none: break
            case .device(let device): export.bases = bases[device]?.all
            case .image(let device, let cut):
                export.bases = bases[device]?.view(until: cut.epoch, of: cut.generation)
            }
            return export
        }
    }

    private let state = Mutex(State())

    package init() {}

    /// Enters an export; from here on clients find it.
    func publish(_ export: ExportDescription, history: ExportHistory) {
        state.withLock { state in
            let place =
                state.entries.firstIndex { $0.export.name > export.name } ?? state.entries.endIndex
            state.entries.insert(Entry(export: export, history: history), at: place)
        }
    }

    /// Takes an export out; connections that are open stay open.
    func withdraw(_ name: String) {
        state.withLock { state in state.entries.removeAll { $0.export.name == name } }
    }

    /// From now on the exports of `device` name these cuts; nil when it is gone. Connections that
    /// are open keep the contexts they have.
    func setBases(_ bases: ExportBases?, of device: ObjectName) {
        state.withLock { $0.bases[device] = bases }
    }

    package func allExports() -> [ExportDescription] {
        state.withLock { state in state.entries.map(\.export) }
    }

    package func export(named name: String) -> ExportDescription? {
        state.withLock { state in
            guard name.isEmpty else {
                return state.entries.first { $0.export.name == name }.map(state.described)
            }
            // Images do not count: a snapshot must not change what the empty name means.
            let devices = state.entries.filter { !$0.export.name.contains("@") }
            return devices.count == 1 ? state.described(devices[0]) : nil
        }
    }
}
