internal import CYAML

/// Composes the values of one YAML document from libyaml's events.
package struct YAMLComposer: ~Copyable {
    /// Deepest nesting that is taken; composing is recursive.
    static let depthMax = 64

    private let parser: UnsafeMutablePointer<yaml_parser_t>
    private var anchors: [String: YAMLNode] = [:]

    /// Reads `text`, at most one document. nil: the text is empty.
    package static func compose(_ text: String) throws(YAMLError) -> YAMLNode? {
        var bytes = Array(text.utf8)
        let count = bytes.count
        // libyaml keeps the address of its input, which must stay while it parses.
        bytes.append(0)
        let input = UnsafeMutableBufferPointer<UInt8>.allocate(capacity: bytes.count)
        _ = unsafe input.initialize(from: bytes)
        defer { unsafe input.deallocate() }
        // SAFETY: the input has `count` bytes and a zero behind them, and outlives the composer.
        var composer = try unsafe YAMLComposer(input.baseAddress!, count)
        return try composer.document(text)
    }

    private init(_ input: UnsafePointer<UInt8>, _ count: Int) throws(YAMLError) {
        let parser = UnsafeMutablePointer<yaml_parser_t>.allocate(capacity: 1)
        guard unsafe yaml_parser_initialize(parser) != 0 else {
            unsafe parser.deallocate()
            throw YAMLError(line: 1, problem: "out of memory")
        }
        unsafe yaml_parser_set_encoding(parser, YAML_UTF8_ENCODING)
        unsafe yaml_parser_set_input_string(parser, input, count)
        unsafe self.parser = parser
    }

    deinit {
        unsafe yaml_parser_delete(parser)
        unsafe parser.deallocate()
    }

    private mutating func document(_ text: String) throws(YAMLError) -> YAMLNode? {
        var root: YAMLNode?
        while true {
            let event = try next(text)
            switch event.kind {
            case .streamEnd: return root
            case .documentStart where root != nil:
                throw YAMLError(line: event.line, problem: "only one document is allowed")
            case .streamStart, .documentStart, .documentEnd: continue
            case .alias, .scalar, .sequenceStart, .sequenceEnd, .mappingStart, .mappingEnd:
                root = try value(event, text, depth: 0)
            }
        }
    }

    private mutating func value(
        _ event: Event, _ text: String, depth: Int
    ) throws(YAMLError) -> YAMLNode {
        guard depth < Self.depthMax else {
            throw YAMLError(
                line: event.line, problem: "values are nested more than \(Self.depthMax) deep")
        }
        let node: YAMLNode
        switch event.kind {
        case .alias(let name):
            guard let known = anchors[name] else {
                throw YAMLError(line: event.line, problem: "alias *\(name) has no anchor &\(name)")
            }
            return known
        case .scalar(let scalar, let isPlain):
            node = YAMLNode(.scalar(scalar, isPlain: isPlain), line: event.line)
        case .sequenceStart: node = try sequence(event, text, depth)
        case .mappingStart: node = try mapping(event, text, depth)
        case .streamStart, .streamEnd, .documentStart, .documentEnd, .sequenceEnd, .mappingEnd:
            throw YAMLError(line: event.line, problem: "a value is missing")
        }
        if let anchor = event.anchor { anchors[anchor] = node }
        return node
    }

    private mutating func sequence(
        _ start: Event, _ text: String, _ depth: Int
    ) throws(YAMLError) -> YAMLNode {
        var elements: [YAMLNode] = []
        while true {
            let event = try next(text)
            if case .sequenceEnd = event.kind {
                return YAMLNode(.sequence(elements), line: start.line)
            }
            elements.append(try value(event, text, depth: depth + 1))
        }
    }

    private mutating func mapping(
        _ start: Event, _ text: String, _ depth: Int
    ) throws(YAMLError) -> YAMLNode {
        var entries: [YAMLEntry] = []
        var names: Set<String> = []
        while true {
            let event = try next(text)
            if case .mappingEnd = event.kind {
                return YAMLNode(.mapping(entries), line: start.line)
            }
            let key = try value(event, text, depth: depth + 1)
            guard let name = key.text else {
                throw YAMLError(line: event.line, problem: "a key must be a single word or text")
            }
            guard names.insert(name).inserted else {
                throw YAMLError(line: event.line, problem: "\"\(name)\" is given twice")
            }
            let entry = try next(text)
            entries.append(
                YAMLEntry(key: key, value: try value(entry, text, depth: depth + 1)))
        }
    }
}

extension YAMLComposer {
    /// An event of libyaml as values; its memory has been given back.
    private struct Event {
        enum Kind {
            case streamStart, streamEnd, documentStart, documentEnd
            case alias(String)
            case scalar(String, isPlain: Bool)
            case sequenceStart, sequenceEnd, mappingStart, mappingEnd
        }
        var kind: Kind
        var line: Int
        var anchor: String?
    }

    private mutating func next(_ text: String) throws(YAMLError) -> Event {
        var event = yaml_event_t()
        guard unsafe yaml_parser_parse(parser, &event) != 0 else { throw failure(text) }
        defer { unsafe yaml_event_delete(&event) }
        let line = Int(clamping: unsafe event.start_mark.line) + 1
        // SAFETY: libyaml fills the member of the union that belongs to the event's type.
        switch unsafe event.type {
        case YAML_STREAM_START_EVENT: return Event(kind: .streamStart, line: line)
        case YAML_STREAM_END_EVENT, YAML_NO_EVENT: return Event(kind: .streamEnd, line: line)
        case YAML_DOCUMENT_START_EVENT: return Event(kind: .documentStart, line: line)
        case YAML_DOCUMENT_END_EVENT: return Event(kind: .documentEnd, line: line)
        case YAML_ALIAS_EVENT:
            return Event(kind: .alias(unsafe Self.name(event.data.alias.anchor) ?? ""), line: line)
        case YAML_SCALAR_EVENT:
            let scalar = unsafe event.data.scalar
            let bytes = unsafe UnsafeBufferPointer(start: scalar.value, count: scalar.length)
            return Event(
                kind: .scalar(
                    unsafe String(decoding: bytes, as: UTF8.self),
                    isPlain: unsafe scalar.style == YAML_PLAIN_SCALAR_STYLE),
                line: line, anchor: unsafe Self.name(scalar.anchor))
        case YAML_SEQUENCE_START_EVENT:
            return Event(
                kind: .sequenceStart, line: line,
                anchor: unsafe Self.name(event.data.sequence_start.anchor))
        case YAML_SEQUENCE_END_EVENT: return Event(kind: .sequenceEnd, line: line)
        case YAML_MAPPING_START_EVENT:
            return Event(
                kind: .mappingStart, line: line,
                anchor: unsafe Self.name(event.data.mapping_start.anchor))
        case YAML_MAPPING_END_EVENT: return Event(kind: .mappingEnd, line: line)
        default: throw YAMLError(line: line, problem: "the parser met something unknown")
        }
    }

    private static func name(_ bytes: UnsafeMutablePointer<yaml_char_t>?) -> String? {
        // SAFETY: libyaml ends names with a zero.
        unsafe bytes.map { unsafe String(decodingCString: $0, as: UTF8.self) }
    }

    private func failure(_ text: String) -> YAMLError {
        // SAFETY: both are nil or constant texts of the library.
        let problem = unsafe parser.pointee.problem.map { unsafe String(cString: $0) }
        let context = unsafe parser.pointee.context.map { unsafe String(cString: $0) }
        let line: Int
        if unsafe parser.pointee.error == YAML_READER_ERROR {
            // The reader counts bytes, not lines.
            let offset = Int(clamping: unsafe parser.pointee.problem_offset)
            line = 1 + text.utf8.prefix(offset).count { $0 == UInt8(ascii: "\n") }
        } else {
            line = Int(clamping: unsafe parser.pointee.problem_mark.line) + 1
        }
        let words = [context, problem].compactMap { $0 }.joined(separator: ": ")
        return YAMLError(line: line, problem: words.isEmpty ? "this is not valid YAML" : words)
    }
}
