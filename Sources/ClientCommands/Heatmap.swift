internal import BlockModel
internal import ControlDocuments

// A picture of the changes of a device in a terminal: each cell stands for as many bytes, and its
// shade says which part of them changed. The whole fits the screen, legend and prompt included.

/// Draws changes; see the head of this file.
struct Heatmap {
    /// Bytes that a cell stands for, a multiple of a block.
    let bytesPerCell: UInt64
    private let size: UInt64
    private let width: Int
    private var changed: [UInt64]
    private var byteCount: UInt64 = 0

    /// Part of a cell, in thousandths, from which on a shade is used.
    private static let shades: [(from: UInt64, symbol: Character, colour: Int, text: String)] = [
        (0, "·", 240, "none"), (1, "░", 33, "up to 1 %"), (10, "▒", 220, "up to 10 %"),
        (100, "▓", 208, "up to 50 %"), (500, "█", 196, "more"),
    ]
    /// Columns before and behind a row: its offset and the frame.
    private static let frameColumns = 13
    /// Rows besides the picture: title, frame, legend, totals, and the prompt.
    private static let frameRows = 6

    /// A picture for a terminal of that size; too small a one gets the smallest that can be drawn.
    init(size: UInt64, columns: Int, rows: Int) {
        self.size = size
        width = max(8, min(columns, 200) - Self.frameColumns)
        let height = max(1, min(rows, 100) - Self.frameRows)
        let cells = UInt64(width * height)
        let blocks = (size + blockByteCount - 1) / blockByteCount
        bytesPerCell = max(1, (blocks + cells - 1) / cells) * blockByteCount
        changed = Array(repeating: 0, count: Int((size + bytesPerCell - 1) / bytesPerCell))
    }

    /// The bytes of a range changed.
    mutating func add(_ range: ByteRange) {
        byteCount += range.length
        var position = range.offset
        while position < range.end {
            let cell = position / bytesPerCell
            let end = min((cell + 1) * bytesPerCell, range.end)
            changed[Int(cell)] += end - position
            position = end
        }
    }

    /// The lines of the picture.
    func picture(title: String, rangeCount: UInt64, isColoured: Bool) -> String {
        let edge = String(repeating: " ", count: Self.frameColumns - 3)
        let line = String(repeating: "─", count: width)
        var text = title + "\n" + edge + "┌" + line + "┐\n"
        for start in stride(from: 0, to: changed.count, by: width) {
            let cells = changed[start..<min(start + width, changed.count)]
            let offset = sizeText(UInt64(start) * bytesPerCell)
            text += String(repeating: " ", count: max(0, Self.frameColumns - 4 - offset.count))
            text += offset + " │" + row(cells, isColoured)
            text += String(repeating: " ", count: width - cells.count) + "│\n"
        }
        text += edge + "└" + line + "┘\n"
        text += Self.shades.map { shade in
            Self.painted(String(shade.symbol), shade.colour, isColoured) + " " + shade.text
        }.joined(separator: "  ")
        text += "\n1 cell = \(sizeText(bytesPerCell)); \(sizeText(byteCount)) of \(sizeText(size)) "
        return text + "(\(percentText)) in \(rangeCount) range(s)\n"
    }

    private func row(_ cells: ArraySlice<UInt64>, _ isColoured: Bool) -> String {
        var text = ""
        var run = ""
        var last = 0
        for cell in cells {
            let shade = Self.shades[shadeIndex(cell)]
            if shade.colour != last {
                text += Self.painted(run, last, isColoured)
                run = ""
                last = shade.colour
            }
            run.append(shade.symbol)
        }
        return text + Self.painted(run, last, isColoured)
    }

    private func shadeIndex(_ bytes: UInt64) -> Int {
        guard bytes > 0 else { return 0 }
        // 2^44 bytes of a cell times a thousand still fit.
        let part = bytes / 4096 * 1000 / max(1, bytesPerCell / 4096)
        return Self.shades.lastIndex { $0.from <= max(1, part) } ?? 1
    }

    private var percentText: String {
        guard size > 0 else { return "0 %" }
        let part = Double(byteCount) * 100 / Double(size)
        if byteCount > 0, part < 0.01 { return "less than 0.01 %" }
        let hundredths = Int((part * 100).rounded())
        let rest = hundredths % 100
        return "\(hundredths / 100).\(rest < 10 ? "0" : "")\(rest) %"
    }

    private static func painted(_ text: String, _ colour: Int, _ isColoured: Bool) -> String {
        guard isColoured, !text.isEmpty else { return text }
        return "\u{1B}[38;5;\(colour)m\(text)\u{1B}[0m"
    }
}
