internal import BlockModel

/// Metrics in the text format of Prometheus, version 0.0.4: families one after the other, each
/// with its help, its type and all its samples.
package struct MetricsText {
    /// What a family's numbers mean.
    enum Kind: String {
        case counter, gauge, histogram
    }

    /// The type of the document.
    package static let contentType = "text/plain; version=0.0.4; charset=utf-8"

    private(set) var text = ""
    private var name = ""

    /// Begins a family; its samples follow.
    mutating func family(_ name: String, _ kind: Kind, _ help: String) {
        self.name = name
        text += "# HELP \(name) \(Self.escaped(help, quotes: false))\n"
        text += "# TYPE \(name) \(kind.rawValue)\n"
    }

    /// One number of the family.
    mutating func sample(_ value: UInt64, _ labels: Labels = []) {
        line("", labels, "\(value)")
    }

    /// One number of the family.
    mutating func sample(_ value: Double, _ labels: Labels = []) {
        line("", labels, "\(value)")
    }

    /// One histogram of the family, in seconds.
    mutating func sample(_ histogram: DurationHistogram, _ labels: Labels = []) {
        var total: UInt64 = 0
        for (index, count) in histogram.counts.enumerated() {
            total += count
            let isLast = index == DurationBuckets.count - 1
            let bound = isLast ? "+Inf" : "\(Self.seconds(DurationBuckets.bound(of: index)))"
            line("_bucket", labels + [("le", bound)], "\(total)")
        }
        line("_sum", labels, "\(Self.seconds(histogram.nanoseconds))")
        line("_count", labels, "\(total)")
    }

    /// Names and values of labels.
    typealias Labels = [(name: String, value: String)]

    private mutating func line(_ suffix: String, _ labels: Labels, _ value: String) {
        text += name
        text += suffix
        for (place, label) in labels.enumerated() {
            text += place == 0 ? "{" : ","
            text += "\(label.name)=\"\(Self.escaped(label.value, quotes: true))\""
        }
        text += labels.isEmpty ? " " : "} "
        text += value
        text += "\n"
    }

    private static func seconds(_ nanoseconds: UInt64) -> Double { Double(nanoseconds) / 1e9 }

    private static func escaped(_ text: String, quotes: Bool) -> String {
        text.reduce(into: "") { result, letter in
            switch letter {
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\"" where quotes: result += "\\\""
            default: result.append(letter)
            }
        }
    }
}
