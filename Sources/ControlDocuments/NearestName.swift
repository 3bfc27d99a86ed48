// What somebody may have meant who mistyped a name.

/// The one of `names` that is most like `text`; nil when none is like enough: at most two letters
/// left out, put in, exchanged or swapped with their neighbour, and fewer than half of them.
package func nearestName(to text: String, among names: some Sequence<String>) -> String? {
    let limit = min(2, (text.utf8.count - 1) / 2)
    guard limit > 0, text.utf8.count <= nearestNameByteCountMax else { return nil }
    var best: (name: String, distance: Int)?
    for name in names where name != text {
        let difference = name.utf8.count - text.utf8.count
        guard abs(difference) <= limit else { continue }
        let distance = distance(Array(text.lowercased().utf8), Array(name.lowercased().utf8))
        let isBetter =
            best.map { (distance, name) < ($0.distance, $0.name) } ?? (distance <= limit)
        if isBetter { best = (name, distance) }
    }
    return best?.name
}

/// Longest text that is compared: names are shorter.
private let nearestNameByteCountMax = 256

/// ` Did you mean "NAME"?` for the end of a message, or nothing.
package func suggestion(for text: String, among names: some Sequence<String>) -> String {
    nearestName(to: text, among: names).map { "; did you mean \"\($0)\"?" } ?? ""
}

/// How many letters have to be changed to make one text of the other (Damerau and Levenshtein).
private func distance(_ old: [UInt8], _ new: [UInt8]) -> Int {
    var before = [Int](repeating: 0, count: new.count + 1)
    var last = Array(0...new.count)
    for row in old.indices {
        var current = [row + 1] + [Int](repeating: 0, count: new.count)
        for column in new.indices {
            let cost = old[row] == new[column] ? 0 : 1
            var least = min(
                last[column + 1] + 1, current[column] + 1, last[column] + cost)
            if row > 0, column > 0, old[row] == new[column - 1], old[row - 1] == new[column] {
                least = min(least, before[column - 1] + 1)
            }
            current[column + 1] = least
        }
        before = last
        last = current
    }
    return last[new.count]
}
