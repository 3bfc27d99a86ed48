// The handshake as a state machine: bytes in, bytes out.
//
//   greeting sent -> client flags -> option* -> opened
//                          \            \-----> closed
//
// Invariants
// - What a client sends costs it: unread input is bounded by one option plus one read, output by
//   `outputByteCountMax` plus one reply, options by their number.
// - No input traps; what breaks the protocol closes, what is merely refused is answered.
// - The meta contexts selected belong to `selection.exportName`, and to no other export.
// - TLS will enter at STARTTLS, which must throw away everything negotiated before it
//   (`forgetNegotiated`; forgetting to was CVE-2021-3716).

/// One handshake, seen from the server.
package struct NBDNegotiation {
    /// What is to happen next.
    package enum Step {
        /// Send `output`, then give it more input.
        case needMore
        /// Send `output`, then go on: enough was said in one go.
        case mustSend
        /// Send `output`; what is left of the input belongs to the transmission phase.
        case opened(NBDSession)
        /// Send `output` and close.
        case closed
    }

    private enum Phase {
        case clientFlags
        case options
        case finished
    }

    /// A client that asks for much in one go reads the answers before it gets more.
    private static let outputByteCountMax = 256 << 10

    private var phase = Phase.clientFlags
    private var input: [UInt8] = []
    private var consumed = 0
    /// Bytes to send; whoever sends them empties it.
    package var output: [UInt8] = []
    private var optionCount = 0
    private var isFixedNewstyle = false
    private var omitsZeroes = false
    private(set) var style = NBDReplyStyle.simple
    private(set) var selection: (exportName: String, contexts: [NBDSelectedContext])?

    /// Starts with the server's greeting as output.
    package init() {
        output.appendWire(NBDMagic.greeting)
        output.appendWire(NBDMagic.option)
        output.appendWire(NBDHandshakeFlags.fixedNewstyle | NBDHandshakeFlags.noZeroes)
    }

    /// Input that was not consumed.
    package var rest: ArraySlice<UInt8> { input[consumed...] }

    /// Takes input.
    package mutating func append(_ bytes: UnsafeRawBufferPointer) {
        input.removeFirst(consumed)
        consumed = 0
        input.append(contentsOf: bytes)
    }

    /// Works through the input as far as it goes.
    package mutating func advance(_ directory: any ExportDirectory) -> Step {
        while true {
            guard output.count < Self.outputByteCountMax else { return .mustSend }
            switch phase {
            case .clientFlags:
                guard rest.count >= 4 else { return .needMore }
                guard takeClientFlags() else { return close() }
            case .options:
                guard rest.count >= 16 else { return .needMore }
                if let step = takeOption(directory) { return step }
            case .finished:
                return .closed
            }
        }
    }

    /// What STARTTLS must throw away.
    mutating func forgetNegotiated() {
        style = .simple
        selection = nil
    }

    private mutating func takeClientFlags() -> Bool {
        var reader = WireReader(rest)
        guard let flags = reader.take(UInt32.self) else { return false }
        consumed += 4
        let known = NBDHandshakeFlags.clientFixedNewstyle | NBDHandshakeFlags.clientNoZeroes
        guard flags & ~known == 0 else { return false }
        isFixedNewstyle = flags & NBDHandshakeFlags.clientFixedNewstyle != 0
        omitsZeroes = flags & NBDHandshakeFlags.clientNoZeroes != 0
        phase = .options
        return true
    }

    /// Takes one option; nil when it was answered and the next may follow.
    private mutating func takeOption(_ directory: any ExportDirectory) -> Step? {
        var reader = WireReader(rest)
        guard let magic = reader.take(UInt64.self), let number = reader.take(UInt32.self),
            let byteCount = reader.take(UInt32.self), magic == NBDMagic.option
        else { return close() }
        guard byteCount <= NBDLimits.optionByteCountMax else {
            if isFixedNewstyle { reply(.tooBig, to: number, "the option is longer than 64 KiB") }
            return close()
        }
        guard let data = reader.take(byteCount) else { return .needMore }
        consumed += 16 + Int(byteCount)
        optionCount += 1
        guard optionCount <= NBDLimits.optionCountMax else { return close() }
        let option = NBDOption(rawValue: number)
        guard isFixedNewstyle || option == .exportName else { return close() }
        switch option {
        case .exportName:
            return exportName(data, directory)
        case .abort:
            reply(.acknowledge, to: number)
            return close()
        case .list:
            list(data, number, directory)
        case .info, .go:
            return information(data, number, directory, opens: option == .go)
        case .structuredReply:
            structuredReply(data, number)
        case .extendedHeaders:
            extendedHeaders(data, number)
        case .listMetaContext, .setMetaContext:
            metaContext(data, number, directory, selects: option == .setMetaContext)
        case .startTLS, nil:
            // TLS enters here: acknowledge, `forgetNegotiated()`, hand over to the record layer.
            reply(.unsupported, to: number, "this server does not know the option")
        }
        return nil
    }

    private mutating func close() -> Step {
        phase = .finished
        return .closed
    }

    // MARK: Options that open

    private mutating func exportName(
        _ data: ArraySlice<UInt8>, _ directory: any ExportDirectory
    ) -> Step {
        // This option knows no error reply: what cannot be opened ends the connection.
        guard style != .extended, data.count <= NBDLimits.nameByteCountMax,
            let name = WireReader.text(data), let export = directory.export(named: name),
            let session = session(export, askedFor: name)
        else { return close() }
        output.appendWire(export.size)
        output.appendWire(export.transmissionFlags(style: style).rawValue)
        if !omitsZeroes { output.append(contentsOf: repeatElement(0, count: 124)) }
        phase = .finished
        return .opened(session)
    }

    /// INFO and GO.
    private mutating func information(
        _ data: ArraySlice<UInt8>, _ number: UInt32, _ directory: any ExportDirectory, opens: Bool
    ) -> Step? {
        var reader = WireReader(data)
        guard let name = reader.takeText(), let itemCount = reader.take(UInt16.self),
            reader.remaining == 2 * Int(itemCount)
        else {
            reply(.invalid, to: number, "the option's lengths or its name make no sense")
            return nil
        }
        guard let export = directory.export(named: name) else {
            reply(.unknown, to: number, "there is no export of this name")
            return nil
        }
        guard let session = session(export, askedFor: name) else {
            reply(.invalid, to: number, "the selected meta contexts have changed; select again")
            return nil
        }
        var wanted: Set<UInt16> = []
        while let item = reader.take(UInt16.self) { wanted.insert(item) }
        describe(export, wanted, number)
        reply(.acknowledge, to: number)
        guard opens else { return nil }
        phase = .finished
        return .opened(session)
    }

    private mutating func describe(
        _ export: ExportDescription, _ wanted: Set<UInt16>, _ number: UInt32
    ) {
        var item: [UInt8] = []
        item.appendWire(NBDInfo.export.rawValue)
        item.appendWire(export.size)
        item.appendWire(export.transmissionFlags(style: style).rawValue)
        reply(.info, to: number, item)
        if wanted.contains(NBDInfo.name.rawValue) {
            reply(.info, to: number, Self.textItem(.name, export.name))
        }
        if wanted.contains(NBDInfo.description.rawValue) {
            reply(.info, to: number, Self.textItem(.description, export.summary))
        }
        item = []
        item.appendWire(NBDInfo.blockSize.rawValue)
        item.appendWire(NBDLimits.minimumBlock)
        item.appendWire(NBDLimits.preferredBlock)
        item.appendWire(UInt32(NBDLimits.payloadByteCountMax))
        reply(.info, to: number, item)
    }

    private static func textItem(_ item: NBDInfo, _ text: String) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.appendWire(item.rawValue)
        bytes.append(contentsOf: text.utf8.prefix(NBDLimits.nameByteCountMax))
        return bytes
    }

    /// Binds the selection to the export; nil when a selected context is no longer offered.
    private func session(_ export: ExportDescription, askedFor name: String) -> NBDSession? {
        guard let selection, selection.exportName == name, style != .simple else {
            return NBDSession(export: export, style: style, contexts: [])
        }
        let offered = export.numberedContexts
        var contexts: [NBDSelectedContext] = []
        for selected in selection.contexts {
            guard var context = offered.first(where: { $0.name == selected.name }) else {
                return nil
            }
            context.id = selected.id
            contexts.append(context)
        }
        return NBDSession(export: export, style: style, contexts: contexts)
    }

    // MARK: Options that are answered

    private mutating func list(
        _ data: ArraySlice<UInt8>, _ number: UInt32, _ directory: any ExportDirectory
    ) {
        guard data.isEmpty else {
            return reply(.invalid, to: number, "the option takes no data")
        }
        for export in directory.allExports() {
            var item: [UInt8] = []
            let name = Array(export.name.utf8.prefix(NBDLimits.nameByteCountMax))
            item.appendWire(UInt32(name.count))
            item.append(contentsOf: name)
            item.append(contentsOf: export.summary.utf8.prefix(NBDLimits.nameByteCountMax))
            reply(.server, to: number, item)
        }
        reply(.acknowledge, to: number)
    }

    private mutating func structuredReply(_ data: ArraySlice<UInt8>, _ number: UInt32) {
        guard data.isEmpty else {
            return reply(.invalid, to: number, "the option takes no data")
        }
        switch style {
        case .simple:
            style = .structured
            reply(.acknowledge, to: number)
        case .structured:
            reply(.invalid, to: number, "structured replies are negotiated already")
        case .extended:
            reply(.extendedHeadersRequired, to: number, "extended headers are negotiated already")
        }
    }

    private mutating func extendedHeaders(_ data: ArraySlice<UInt8>, _ number: UInt32) {
        guard data.isEmpty else {
            return reply(.invalid, to: number, "the option takes no data")
        }
        guard style != .extended else {
            return reply(.invalid, to: number, "extended headers are negotiated already")
        }
        style = .extended
        reply(.acknowledge, to: number)
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    private mutating func metaContext(
        _ data: ArraySlice<UInt8>, _ number: UInt32, _ directory: any ExportDirectory,
        selects: Bool
    ) {
        if selects { selection = nil }
        guard style != .simple else {
            return reply(.invalid, to: number, "negotiate structured replies first")
        }
        var reader = WireReader(data)
        guard let name = reader.takeText(), let queryCount = reader.take(UInt32.self) else {
            return reply(.invalid, to: number, "the option's lengths or its name make no sense")
        }
        guard queryCount <= NBDLimits.queryCountMax else {
            return reply(.tooBig, to: number, "too many queries")
        }
        var queries: Set<String> = []
        for _ in 0..<queryCount {
            guard let query = reader.takeText() else {
                return reply(.invalid, to: number, "the lengths of the queries make no sense")
            }
            queries.insert(query)
        }
        guard reader.remaining == 0 else {
            return reply(.invalid, to: number, "bytes follow the last query")
        }
        guard let export = directory.export(named: name) else {
            return reply(.unknown, to: number, "there is no export of this name")
        }
        let found = export.numberedContexts.filter { context in
            queries.contains(context.name)
                || !selects && (queries.isEmpty || Self.isFound(context.name, by: queries))
        }
        guard !selects || found.count <= NBDLimits.selectedContextCountMax else {
            return reply(.tooBig, to: number, "at most 64 meta contexts can be selected at once")
        }
        for context in found {
            var item: [UInt8] = []
            item.appendWire(selects ? context.id : 0)
            item.append(contentsOf: context.name.utf8.prefix(NBDLimits.nameByteCountMax))
            reply(.metaContext, to: number, item)
        }
        if selects { selection = (name, found) }
        reply(.acknowledge, to: number)
    }

    /// True when a query ends in a colon and the context's name begins with it.
    private static func isFound(_ name: String, by queries: Set<String>) -> Bool {
        var prefix = ""
        for character in name {
            prefix.append(character)
            if character == ":", queries.contains(prefix) { return true }
        }
        return false
    }

    // MARK: Replies

    private mutating func reply(
        _ type: NBDOptionReply, to option: UInt32, _ data: [UInt8] = []
    ) {
        output.appendWire(NBDMagic.optionReply)
        output.appendWire(option)
        output.appendWire(type.rawValue)
        output.appendWire(UInt32(data.count))
        output.append(contentsOf: data)
    }

    private mutating func reply(_ type: NBDOptionReply, to option: UInt32, _ message: String) {
        reply(type, to: option, Array(message.utf8))
    }
}
