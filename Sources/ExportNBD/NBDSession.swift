// What a handshake has agreed on.

/// A meta context that the client selected.
package struct NBDSelectedContext: Equatable, Sendable {
    /// The number replies name it by.
    package var id: UInt32
    package var name: String
    /// The number the device knows it by.
    package var statusContext: UInt16

    package init(id: UInt32, name: String, statusContext: UInt16) {
        self.id = id
        self.name = name
        self.statusContext = statusContext
    }
}

/// The outcome of a handshake: an export and how to talk about it.
package struct NBDSession: Sendable {
    package var export: ExportDescription
    package var style: NBDReplyStyle
    /// In the order of their ids.
    package var contexts: [NBDSelectedContext]

    package init(
        export: ExportDescription, style: NBDReplyStyle, contexts: [NBDSelectedContext]
    ) {
        self.export = export
        self.style = style
        self.contexts = contexts
    }
}

/// The context every export offers: what is allocated.
package let nbdAllocationContext = "base:allocation"

extension ExportDescription {
    /// What the export offers to a client that speaks `style`.
    package func transmissionFlags(style: NBDReplyStyle) -> NBDTransmissionFlags {
        var flags: NBDTransmissionFlags = [
            .hasFlags, .sendFlush, .sendForceUnitAccess, .canMultiConnect, .sendCache,
        ]
        if isReadOnly {
            flags.insert(.readOnly)
        } else {
            flags.formUnion([.sendWriteZeroes, .sendFastZero])
            if offersDiscard { flags.insert(.sendTrim) }
        }
        if isRotational { flags.insert(.rotational) }
        if style != .simple { flags.insert(.sendDontFragment) }
        if style == .extended { flags.insert(.blockStatusPayload) }
        return flags
    }

    /// All contexts with the ids a client may select them by; ids hold as long as the export's
    /// list of contexts does.
    var numberedContexts: [NBDSelectedContext] {
        let others = contexts.enumerated().map { index, context in
            NBDSelectedContext(
                id: UInt32(index + 1), name: context.name, statusContext: context.statusContext)
        }
        return [NBDSelectedContext(id: 0, name: nbdAllocationContext, statusContext: 0)] + others
    }
}
