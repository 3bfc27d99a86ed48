internal import BlockModel
package import ClientSupport
package import ControlDocuments
package import CopyPlanning

/// Reads an answer about changes page by page, in bounded memory.
package struct ChangesReader {
    let client: ControlClient
    let device: String
    let since: String?
    let until: String?

    package init(client: ControlClient, device: String, since: String?, until: String?) {
        self.client = client
        self.device = device
        self.since = since
        self.until = until
    }

    /// Ranges of a page: a mebibyte in the compact form.
    private static let rangesPerPage = 65536
    /// Times it begins again because cuts were made while it read.
    private static let attemptsMax = 10

    /// All pages of one answer.
    package func read() async throws -> Changes {
        for _ in 1..<Self.attemptsMax {
            do { return try await attempt() } catch let error as ControlError
                where error.code == .changed
            {
                continue
            }
        }
        return try await attempt()
    }

    private func attempt() async throws -> Changes {
        let ranges = RangeSpool()
        var (document, page) = try await client.changes(target(after: nil))
        for range in page { try ranges.add(range) }
        var nextOffset = document.nextOffset
        while let offset = nextOffset {
            let next: ChangesDocument
            (next, page) = try await client.changes(target(after: (document, offset)))
            for range in page { try ranges.add(range) }
            if let following = next.nextOffset, following <= offset {
                throw ControlError(.failed, "the service's answer about \(device) does not end")
            }
            nextOffset = next.nextOffset
        }
        try ranges.finish()
        document.nextOffset = nil
        document.changedBytes = ranges.byteCount
        return Changes(document: document, ranges: ranges)
    }

    private func target(after page: (document: ChangesDocument, offset: UInt64)?) -> String {
        var query = ["limit=\(Self.rangesPerPage)"]
        if let since { query.append("since=\(ControlClient.escaped(since))") }
        if let until { query.append("until=\(ControlClient.escaped(until))") }
        if let (document, offset) = page {
            query += [
                "offset=\(offset)", "generation=\(document.generation)",
                "until_epoch=\(document.until.epoch)",
            ]
            if let since = document.since { query.append("since_epoch=\(since.epoch)") }
        }
        return "/v1/devices/\(ControlClient.escaped(device))/changes?"
            + query.joined(separator: "&")
    }
}

/// A whole answer about changes.
package struct Changes {
    /// The answer without its ranges.
    package let document: ChangesDocument
    /// The changed ranges; no more are added.
    package let ranges: RangeSpool

    /// Rows that a table for people has at most.
    private static let tableRowsMax = 1000

    /// One line that says what it is.
    var title: String {
        let until = document.until.name ?? "now"
        guard let since = document.since?.name else {
            return "\(document.device) until \(until): all but holes"
        }
        let begin = since == CheckpointRequest.generationName ? "tracking began" : since
        return "\(document.device) since \(begin) until \(until)"
    }

    /// One JSON document on standard output.
    func printJSON() throws {
        let frame = String(
            decoding: try DocumentCoding.encoder().encode(document), as: UTF8.self)
        let place = "\"ranges\":["
        guard let split = frame.firstRange(of: place) else {
            preconditionFailure("a document of changes has ranges")
        }
        var output = OutputBuffer()
        output.add(frame[..<split.upperBound])
        var isFirst = true
        try ranges.forEach { range in
            output.add(isFirst ? "{\"length\":" : ",{\"length\":")
            isFirst = false
            output.add(range.length)
            output.add(",\"offset\":")
            output.add(range.offset)
            output.add("}")
        }
        output.add(frame[split.upperBound...])
        output.add("\n")
        output.flush()
    }

    /// A line OFFSET LENGTH for each range on standard output.
    func printRanges() throws {
        var output = OutputBuffer()
        try ranges.forEach { range in
            output.add(range.offset)
            output.add(" ")
            output.add(range.length)
            output.add("\n")
        }
        output.flush()
    }

    /// A summary and the first ranges on standard output.
    func printTable() throws {
        var table = Table([("OFFSET", .right), ("LENGTH", .right), ("SIZE", .right)], elastic: 0)
        try ranges.forEach { range in
            guard table.rows.count < Self.tableRowsMax else { return }
            table.add(["\(range.offset)", "\(range.length)", sizeText(range.length)])
        }
        var text = factLines([
            ("device", "\(document.device), \(sizeText(document.size))"),
            ("since", cutText(document.since, none: "the whole device except for its holes")),
            ("until", cutText(document.until, none: "now")),
            ("generation", document.generation),
            (
                document.full ? "to read" : "changed",
                "\(sizeText(ranges.byteCount)) in \(ranges.count) range(s)"
            ),
        ])
        if ranges.count > 0 { text += "\n" + table.lines(columns: nil) }
        if ranges.count > Self.tableRowsMax {
            text +=
                "... and \(ranges.count - UInt64(Self.tableRowsMax)) more; `--format ranges` prints all\n"
        }
        FileHandles.output.write(text)
    }

    private func cutText(_ cut: ChangesDocument.Cut?, none: String) -> String {
        guard let cut else { return none }
        return "\(cut.name ?? none) (epoch \(cut.epoch))"
    }
}
