internal import BlockModel
internal import NBDWire

// The handshake of fixed newstyle as a state machine: bytes in, bytes out.
//
//   greeting sent ──client flags──► options ──EXPORT_NAME, GO──► opened
//                                      │  ▲
//                                      └──┘ every other option
//
// STARTTLS, where it is offered, ends a negotiation: the client continues under TLS with one that
// knows nothing of the first but the client flags.
//
// Invariants
// - No length is believed before it was compared with its limit; no option is looked at before
//   all of its bytes are there.
// - An option that was refused changes nothing; a failed SET_META_CONTEXT forgets the selection.
// - Contexts belong to the export they were selected for: opening another one drops them.
// - Where TLS is required and not established, no option but STARTTLS and ABORT is looked at, and
//   nothing is said about exports.
// - Bytes that came in behind STARTTLS were not protected by it: they end the connection.

/// A handshake of one connection.
struct NBDNegotiation {
    /// What follows from the bytes received so far.
    enum Outcome {
        /// Send `output`, then continue with what more comes in.
        case more
        /// Send `output`, then serve requests; `remainingInput` belongs to them.
        case opened(Opening)
        /// Send `output`, then continue under TLS with `init(under:)`.
        case secured
        /// Send `output`, then close.
        case closed
    }

    /// What a client opened.
    struct Opening: Sendable {
        var export: ExportDescription
        var mode: NBDReplyMode
        /// Selected meta contexts, with the identifiers the client was told.
        var contexts: [Context]

        struct Context: Sendable {
            var id: UInt32
            /// What it says: what changed since this cut, or allocation when nil.
            var base: TrackingBase?
        }
    }

    /// Most options of one handshake.
    static let optionCountMax = 4096
    /// Most queries of one option.
    static let queryCountMax: UInt32 = 256
    /// Most meta contexts that are listed, those of the newest cuts; all can be selected.
    static let listedCountMax = 1024
    /// Most meta contexts selected by a connection.
    static let contextCountMax = 64

    private let directory: any ExportDirectory
    private let security: NBDSecurity
    private var input: [UInt8] = []
    private var hasClientFlags = false
    private var omitsZeroes = false
    private var mode = NBDReplyMode.simple
    private var selectedExport: String?
    private var selected: [Opening.Context] = []
    private var optionCount = 0

    /// Bytes to be sent; the caller takes them with `takeOutput`.
    private(set) var output: [UInt8] = []

    init(directory: any ExportDirectory, security: NBDSecurity = .unavailable) {
        self.directory = directory
        self.security = security
        output.append(wire: NBD.greetingMagic)
        output.append(wire: NBD.optionMagic)
        output.append(wire: NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes)
    }

    /// Continues under TLS after `plain` ended with `.secured`.
    init(under plain: NBDNegotiation) {
        directory = plain.directory
        security = .established
        hasClientFlags = true
        omitsZeroes = plain.omitsZeroes
    }

    /// What came in behind the option that opened the export.
    var remainingInput: [UInt8] { input }

    mutating func takeOutput() -> [UInt8] {
        let bytes = output
        output.removeAll(keepingCapacity: true)
        return bytes
    }

    /// Takes bytes in; an empty piece continues with what is there already.
    mutating func received(_ bytes: UnsafeRawBufferPointer) -> Outcome {
        input.append(contentsOf: bytes)
        // One answer at a time: a client that only asks must take its answers in between.
        while output.count < NBD.optionByteCountMax {
            guard let outcome = step() else { return .more }
            switch outcome {
            case .more: continue
            case .opened, .secured, .closed: return outcome
            }
        }
        return .more
    }

    /// Handles the next message; nil when it is not complete.
    private mutating func step() -> Outcome? {
        guard hasClientFlags else { return takeClientFlags() }
        guard input.count >= NBD.optionByteCount else { return nil }
        let magic: UInt64 = input.wire(at: 0)
        let number: UInt32 = input.wire(at: 8)
        let length = Int(input.wire(at: 12, as: UInt32.self))
        guard magic == NBD.optionMagic, length <= NBD.optionByteCountMax else { return .closed }
        let end = NBD.optionByteCount + length
        guard input.count >= end else { return nil }
        optionCount += 1
        guard optionCount <= Self.optionCountMax else { return .closed }
        let data = NBDOptionReader(input[NBD.optionByteCount..<end])
        input.removeFirst(end)
        if security == .required, number != NBD.Option.startTLS.rawValue,
            number != NBD.Option.abort.rawValue
        {
            // This option has no other refusal than the end.
            if number == NBD.Option.exportName.rawValue { return .closed }
            reply(number, .encryptionRequired, "start TLS first")
            return .more
        }
        guard let option = NBD.Option(rawValue: number) else {
            reply(number, .unsupported, "this option is not known here")
            return .more
        }
        return handle(option, data)
    }

    private mutating func takeClientFlags() -> Outcome? {
        guard input.count >= 4 else { return nil }
        let flags: UInt32 = input.wire(at: 0)
        input.removeFirst(4)
        let known = UInt32(NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes)
        guard flags & ~known == 0 else { return .closed }
        omitsZeroes = flags & UInt32(NBD.HandshakeFlag.noZeroes) != 0
        hasClientFlags = true
        return .more
    }

    private mutating func handle(_ option: NBD.Option, _ data: NBDOptionReader) -> Outcome {
        switch option {
        case .exportName: return exportName(data)
        case .abort:
            reply(option, .acknowledge)
            return .closed
        case .list: list(data)
        case .startTLS: return startTLS(data)
        case .info, .go: return information(option, data)
        case .structuredReply: structuredReply(data)
        case .listMetaContext, .setMetaContext: metaContext(option, data)
        case .extendedHeaders: extendedHeaders(data)
        }
        return .more
    }

    // MARK: Options

    private mutating func startTLS(_ data: NBDOptionReader) -> Outcome {
        switch security {
        case .unavailable:
            reply(.startTLS, .unsupported, "this endpoint does not speak TLS")
            return .more
        case .established:
            reply(.startTLS, .invalid, "this connection is encrypted already")
            return .more
        case .offered, .required: break
        }
        guard data.isEmpty else {
            reply(.startTLS, .invalid, "this option takes no data")
            return .more
        }
        guard input.isEmpty else { return .closed }
        reply(.startTLS, .acknowledge)
        return .secured
    }

    private mutating func exportName(_ data: NBDOptionReader) -> Outcome {
        var data = data
        guard mode != .extended, let name = data.text(byteCount: data.count),
            let export = directory.export(named: name)
        else { return .closed }
        output.append(wire: export.size)
        output.append(wire: exportFlags(of: export))
        if !omitsZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
        return .opened(opening(export, named: name))
    }

    private mutating func list(_ data: NBDOptionReader) {
        guard data.isEmpty else { return reply(.list, .invalid, "this option takes no data") }
        for export in directory.allExports() {
            var body: [UInt8] = []
            body.append(wireName: export.name)
            body.append(contentsOf: export.summary.utf8)
            reply(.list, .server, body)
        }
        reply(.list, .acknowledge)
    }

    private mutating func information(_ option: NBD.Option, _ data: NBDOptionReader) -> Outcome {
        var data = data
        guard let nameByteCount = data.uint32() else { return malformed(option) }
        guard nameByteCount <= NBD.nameByteCountMax else {
            reply(option, .tooBig, "the name is too long")
            return .more
        }
        guard let name = data.text(byteCount: Int(nameByteCount)), let count = data.uint16(),
            data.count == Int(count) * 2
        else { return malformed(option) }
        var wanted: Set<UInt16> = []
        for _ in 0..<count { if let item = data.uint16() { wanted.insert(item) } }
        guard let export = directory.export(named: name) else {
            reply(option, .unknown, "the export was not found")
            return .more
        }
        inform(option, export, wanted)
        reply(option, .acknowledge)
        return option == .go ? .opened(opening(export, named: name)) : .more
    }

    private mutating func inform(
        _ option: NBD.Option, _ export: ExportDescription, _ wanted: Set<UInt16>
    ) {
        var body: [UInt8] = []
        body.append(wire: NBD.Info.export.rawValue)
        body.append(wire: export.size)
        body.append(wire: exportFlags(of: export))
        reply(option, .info, body)
        if wanted.contains(NBD.Info.name.rawValue) {
            body.removeAll(keepingCapacity: true)
            body.append(wire: NBD.Info.name.rawValue)
            body.append(contentsOf: export.name.utf8)
            reply(option, .info, body)
        }
        if wanted.contains(NBD.Info.description.rawValue) {
            body.removeAll(keepingCapacity: true)
            body.append(wire: NBD.Info.description.rawValue)
            body.append(contentsOf: export.summary.utf8)
            reply(option, .info, body)
        }
        if wanted.contains(NBD.Info.blockSize.rawValue) {
            body.removeAll(keepingCapacity: true)
            body.append(wire: NBD.Info.blockSize.rawValue)
            body.append(wire: UInt32(1))
            body.append(wire: NBD.preferredBlockByteCount)
            body.append(wire: UInt32(NBD.payloadByteCountMax))
            reply(option, .info, body)
        }
    }

    private mutating func structuredReply(_ data: NBDOptionReader) {
        guard data.isEmpty else {
            return reply(.structuredReply, .invalid, "this option takes no data")
        }
        switch mode {
        case .simple:
            mode = .structured
            reply(.structuredReply, .acknowledge)
        case .structured:
            reply(.structuredReply, .invalid, "structured replies are negotiated already")
        case .extended:
            reply(
                .structuredReply, .extendedHeadersRequired,
                "extended headers are negotiated already")
        }
    }

    private mutating func extendedHeaders(_ data: NBDOptionReader) {
        guard data.isEmpty else {
            return reply(.extendedHeaders, .invalid, "this option takes no data")
        }
        guard mode != .extended else {
            return reply(.extendedHeaders, .invalid, "extended headers are negotiated already")
        }
        mode = .extended
        reply(.extendedHeaders, .acknowledge)
    }

    private mutating func metaContext(_ option: NBD.Option, _ data: NBDOptionReader) {
        if option == .setMetaContext {
            selectedExport = nil
            selected = []
        }
        guard mode != .simple else {
            return reply(option, .invalid, "negotiate structured replies first")
        }
        var data = data
        guard let nameByteCount = data.uint32() else {
            return reply(option, .invalid, "the option is malformed")
        }
        guard nameByteCount <= NBD.nameByteCountMax else {
            return reply(option, .tooBig, "the name is too long")
        }
        guard let name = data.text(byteCount: Int(nameByteCount)), let count = data.uint32()
        else { return reply(option, .invalid, "the option is malformed") }
        guard count <= Self.queryCountMax else {
            return reply(option, .tooBig, "too many queries")
        }
        guard let queries = data.queries(count: count), data.isEmpty else {
            return reply(option, .invalid, "the option is malformed")
        }
        guard let export = directory.export(named: name) else {
            return reply(option, .unknown, "the export was not found")
        }
        let isSetting = option == .setMetaContext
        let chosen =
            isSetting
            ? NBDMetaContexts.selected(by: queries, of: export)
            : NBDMetaContexts.listed(by: queries, of: export)
        for (index, context) in chosen.enumerated() {
            var body: [UInt8] = []
            body.append(wire: isSetting ? UInt32(index + 1) : 0)
            body.append(contentsOf: context.name.utf8)
            reply(option, .metaContext, body)
        }
        if isSetting {
            selectedExport = export.name
            selected = chosen.enumerated().map { index, context in
                Opening.Context(id: UInt32(index + 1), base: context.base)
            }
        }
        reply(option, .acknowledge)
    }

    // MARK: Helpers

    private func opening(_ export: ExportDescription, named name: String) -> Opening {
        Opening(
            export: export, mode: mode, contexts: selectedExport == export.name ? selected : [])
    }

    private func exportFlags(of export: ExportDescription) -> UInt16 {
        var flags =
            NBD.ExportFlag.hasFlags | NBD.ExportFlag.sendFlush
            | NBD.ExportFlag.sendForceUnitAccess | NBD.ExportFlag.canMultiConnect
            | NBD.ExportFlag.sendCache
        if export.isReadOnly {
            flags |= NBD.ExportFlag.readOnly
        } else {
            flags |= NBD.ExportFlag.sendWriteZeroes | NBD.ExportFlag.sendFastZero
            if export.canDiscard { flags |= NBD.ExportFlag.sendTrim }
        }
        if export.isRotational { flags |= NBD.ExportFlag.rotational }
        if mode != .simple { flags |= NBD.ExportFlag.sendDontFragment }
        if mode == .extended { flags |= NBD.ExportFlag.blockStatusPayload }
        return flags
    }

    private mutating func malformed(_ option: NBD.Option) -> Outcome {
        reply(option, .invalid, "the option is malformed")
        return .more
    }

    private mutating func reply(
        _ option: NBD.Option, _ type: NBD.OptionReply, _ body: [UInt8] = []
    ) {
        reply(option.rawValue, type, body)
    }

    private mutating func reply(_ option: NBD.Option, _ type: NBD.OptionReply, _ message: String) {
        reply(option.rawValue, type, message)
    }

    private mutating func reply(_ option: UInt32, _ type: NBD.OptionReply, _ message: String) {
        reply(option, type, Array(message.utf8))
    }

    private mutating func reply(_ option: UInt32, _ type: NBD.OptionReply, _ body: [UInt8]) {
        output.append(wire: NBD.optionReplyMagic)
        output.append(wire: option)
        output.append(wire: type.rawValue)
        output.append(wire: UInt32(body.count))
        output.append(contentsOf: body)
    }
}
