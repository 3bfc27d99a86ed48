package import BlockModel

/// How a checkpoint is asked for.
package struct CheckpointRequest: Equatable, Sendable {
    package let name: ObjectName
    package let devices: [ObjectName]
    /// Filesystems of live devices are frozen for it; otherwise they are only written back before.
    package let isFrozen: Bool
    /// The id of the copy that it is held for.
    package let id: UniqueID?

    /// What `--since` calls the start of a device's generation, so no cut can be called so.
    package static let generationName = "generation"

    /// Checks what came from outside.
    package init(_ document: CheckpointCreateDocument) throws(ControlError) {
        name = try Self.baseName(document.name, of: "checkpoint")
        devices = try SnapshotRequest.devices(document.devices, of: "checkpoint")
        switch document.freeze ?? [] {
        case [], ["auto"]: isFrozen = true
        case ["none"]: isFrozen = false
        default:
            throw ControlError(
                .invalid, "freeze of a checkpoint: give auto or none, or leave it out")
        }
        guard isFrozen || document.holdMilliseconds == nil else {
            throw ControlError(
                .invalid, "hold_milliseconds: a cut is held frozen, not with freeze none")
        }
        id = try document.id.map { text throws(ControlError) in
            guard document.holdMilliseconds != nil, let id = UniqueID(text) else {
                throw ControlError(.invalid, "id \"\(text)\": give a UUID, with hold_milliseconds")
            }
            return id
        }
    }

    /// A name that queries of changes can use for a cut.
    static func baseName(_ text: String, of kind: String) throws(ControlError) -> ObjectName {
        guard UniqueID(text) == nil else {
            throw ControlError(
                .invalid, "\"\(text)\" could be the id of a snapshot; choose another name")
        }
        guard text != generationName else {
            throw ControlError(
                .invalid,
                "a \(kind) cannot be called \"\(text)\": `--since generation` means since tracking "
                    + "began; choose another name")
        }
        return try SnapshotRequest.name(text, of: kind)
    }
}
