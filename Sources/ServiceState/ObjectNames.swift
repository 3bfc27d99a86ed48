package import ControlDocuments
package import BlockModel
internal import Synchronization

/// The names of snapshots and checkpoints, which share one namespace: who has which. A snapshot and
/// the checkpoint that it leaves have the same one.
package final class ObjectNames: Sendable {
    /// What has a name.
    package enum Kind: String, Sendable {
        case snapshot, checkpoint
    }

    private let owners = Mutex<[ObjectName: Set<Kind>]>([:])

    /// Takes a name that nobody has.
    package func reserve(_ name: ObjectName, for kind: Kind) throws(ControlError) {
        let owner = owners.withLock { owners -> Kind? in
            // The snapshot that has it is named before the checkpoint it left.
            if let kinds = owners[name] {
                return kinds.contains(.snapshot) ? .snapshot : .checkpoint
            }
            owners[name] = [kind]
            return nil
        }
        guard let owner else { return }
        let wayOut = owner == .snapshot ? "destroy it" : "delete it"
        throw ControlError(
            .nameTaken, "\(owner.rawValue) \(name) exists; choose another name or \(wayOut) first")
    }

    /// Takes a name even when it is taken: a checkpoint that was recorded.
    package func add(_ name: ObjectName, for kind: Kind) {
        owners.withLock { _ = $0[name, default: []].insert(kind) }
    }

    /// Gives a name back.
    package func release(_ name: ObjectName, of kind: Kind) {
        owners.withLock { owners in
            owners[name]?.remove(kind)
            if owners[name]?.isEmpty ?? false { owners[name] = nil }
        }
    }
}
