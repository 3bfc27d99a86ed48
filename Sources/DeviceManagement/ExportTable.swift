package import BlockModel
package import ExportNBD
package import ServiceState
internal import Synchronization

// What clients can open at this moment: written by the registries, read by exports during
// handshakes, on any thread.
//
// Invariants
// - An export offers changes by the list of its device's bases at the moment it is looked up; what
//   a client negotiated keeps its meaning, for its requests carry the cut itself.
// - An image names only cuts before its own.
// - A name that an export was published under wins over an id that begins so.
//
// A client may ask for an export by another name than the one it is listed under:
//   DEVICE@ID, DEVICE@ID:rw    the id of the snapshot or a beginning of it that no other has
//   NAME:since=BASE            the export NAME with the bitmap of BASE and no other

/// Which changes an export offers.
package enum ExportedChanges: Sendable {
    /// None: what is written through the export is not a change of the device.
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
        var changes: ExportedChanges
        /// Of an image.
        var snapshot: SnapshotLabel?
        /// The snapshot's id as text: handshakes look many of them through.
        var snapshotID = ""
    }

    private struct State {
        /// By name.
        var entries: [Entry] = []
        var bases: [ObjectName: ExportBases] = [:]

        func described(_ entry: Entry) -> ExportDescription {
            var export = entry.export
            switch entry.changes {
            case .none: break
            case .device(let device): export.bases = bases[device]?.all
            case .image(let device, let cut):
                export.bases = bases[device]?.view(before: cut.epoch, of: cut.generation)
            }
            return export
        }

        /// The entry of that name, or of the snapshot whose id it begins with.
        func entry(named name: some StringProtocol) -> Entry? {
            if let entry = entries.first(where: { $0.export.name == name }) { return entry }
            let parts = name.split(separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
            guard parts.count == 2 else { return nil }
            let suffix = parts[1].hasSuffix(":rw") ? ":rw" : ""
            let text = parts[1].dropLast(suffix.count)
            let isName = entries.contains { $0.snapshot?.name.map { $0.text == text } ?? false }
            guard !text.isEmpty, !isName else { return nil }
            let prefix = text.lowercased()
            let matches = entries.filter { $0.snapshotID.hasPrefix(prefix) }
            guard let snapshot = matches.first?.snapshot,
                matches.allSatisfy({ $0.snapshot == snapshot })
            else { return nil }
            let canonical = "\(parts[0])@\(snapshot)\(suffix)"
            return matches.first { $0.export.name == canonical }
        }
    }

    /// What stands between the name of an export and that of the only base it is to tell. It needs
    /// no escape in the URIs of NBD, nor in the options of QEMU.
    private static let since = ":since="

    private let state = Mutex(State())

    package init() {}

    /// Enters an export, of an image of `snapshot` or of a device; from here on clients find it.
    package func publish(
        _ export: ExportDescription, changes: ExportedChanges, snapshot: SnapshotLabel? = nil
    ) {
        state.withLock { state in
            let place =
                state.entries.firstIndex { $0.export.name > export.name } ?? state.entries.endIndex
            state.entries.insert(
                Entry(
                    export: export, changes: changes, snapshot: snapshot,
                    snapshotID: snapshot?.id.description ?? ""), at: place)
        }
    }

    /// Takes an export out; connections that are open stay open.
    package func withdraw(_ name: String) {
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
            guard name.isEmpty else { return Self.found(name, in: state) }
            // Images do not count: a snapshot must not change what the empty name means.
            let devices = state.entries.filter { !$0.export.name.contains("@") }
            return devices.count == 1 ? state.described(devices[0]) : nil
        }
    }

    private static func found(_ name: String, in state: State) -> ExportDescription? {
        guard let mark = name.firstRange(of: since) else {
            return state.entry(named: name).map(state.described)
        }
        guard let entry = state.entry(named: name[..<mark.lowerBound]) else { return nil }
        var export = state.described(entry)
        let base = name[mark.upperBound...]
        guard let bases = export.bases?.only(base) else { return nil }
        export.bases = bases
        export.name += since + base
        return export
    }
}
