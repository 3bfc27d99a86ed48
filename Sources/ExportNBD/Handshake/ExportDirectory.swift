package import BlockModel
package import RingIO

/// What a client can open, as it stands at this moment.
package struct ExportDescription: Sendable {
    /// Name in the protocol: `DEVICE`, `DEVICE@SNAPSHOT` or `DEVICE@SNAPSHOT:rw`; the first two may
    /// be followed by `:since=NAME`.
    package var name: String
    /// One line for people.
    package var summary: String
    /// Bytes.
    package var size: UInt64
    package var isReadOnly: Bool
    package var isRotational: Bool
    /// Discards are offered.
    package var canDiscard: Bool
    /// The cuts since which changes can be asked for; nil: it tells no changes.
    package var bases: ExportBases.View?
    /// The loop that serves it.
    package var loop: LoopThread
    package var target: LoopConfined<BlockTarget>

    package init(
        name: String, summary: String, size: UInt64, isReadOnly: Bool, isRotational: Bool,
        canDiscard: Bool, bases: ExportBases.View? = nil, loop: LoopThread,
        target: LoopConfined<BlockTarget>
    ) {
        self.name = name
        self.summary = summary
        self.size = size
        self.isReadOnly = isReadOnly
        self.isRotational = isRotational
        self.canDiscard = canDiscard
        self.bases = bases
        self.loop = loop
        self.target = target
    }
}

/// Where the server looks exports up; asked during handshakes only. May lock briefly.
package protocol ExportDirectory: AnyObject, Sendable {
    /// All exports, in the order clients list them.
    func allExports() -> [ExportDescription]

    /// The export of that name; the empty name is the only device, if there is just one.
    func export(named name: String) -> ExportDescription?
}
