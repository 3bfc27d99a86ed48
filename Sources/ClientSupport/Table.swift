/// A table for people that fits the terminal.
package struct Table {
    /// How a column is set.
    package enum Alignment {
        case left, right
    }

    let headings: [(text: String, alignment: Alignment)]
    /// The column that gives way when the terminal is narrow: its middle is left out.
    let elastic: Int
    /// The cells of each row, as they were added.
    package private(set) var rows: [[String]] = []

    /// Least width the elastic column is cut to.
    static let elasticWidthMin = 12

    package init(_ headings: [(text: String, alignment: Alignment)], elastic: Int) {
        self.headings = headings
        self.elastic = elastic
    }

    /// Adds a row: a cell for each column.
    package mutating func add(_ row: [String]) {
        precondition(row.count == headings.count, "a row fills every column")
        rows.append(row)
    }

    /// The lines, each at most `columns` wide where possible; nil: as wide as needed.
    package func lines(columns: Int?) -> String {
        var widths = headings.indices.map { column in
            rows.reduce(headings[column].text.count) { max($0, $1[column].count) }
        }
        let total = widths.reduce(0, +) + 2 * (widths.count - 1)
        if let columns, total > columns {
            widths[elastic] = max(Self.elasticWidthMin, widths[elastic] - (total - columns))
        }
        let all = [headings.map(\.text)] + rows
        return all.map { row in line(row, widths) + "\n" }.joined()
    }

    private func line(_ row: [String], _ widths: [Int]) -> String {
        var text = ""
        for (column, cell) in row.enumerated() {
            let cell = Self.shortened(cell, to: widths[column])
            let padding = String(repeating: " ", count: widths[column] - cell.count)
            text += headings[column].alignment == .right ? padding + cell : cell + padding
            if column < row.count - 1 { text += "  " }
        }
        while text.last == " " { text.removeLast() }
        return text
    }

    private static func shortened(_ text: String, to width: Int) -> String {
        guard text.count > width else { return text }
        let head = (width - 1) / 2
        return text.prefix(head) + "…" + text.suffix(width - 1 - head)
    }
}
