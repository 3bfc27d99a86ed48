// The reference of the randomised test of changes: what changed on a device between any two of its
// cuts, noted block by block.

import TestSupport

/// A cut of a device that can be asked since.
struct NamedCut {
    let name: String
    /// Cuts of the device before this one: changes after it are in later periods.
    let period: Int
    let size: Int
}

/// A held snapshot of a device, until which can be asked.
struct HeldCut {
    let name: String
    let period: Int
    let size: Int
    /// The base that was the newest ever since it was made, until this cut.
    let exactBase: String?
}

/// A device, and which of its blocks changed in which period between two cuts.
struct ChangesModel {
    let name: String
    let path: String
    var size: Int
    var client: NBDClient
    /// Blocks that changed, by period; the last one is now.
    private(set) var periods: [Set<Int>] = [[]]
    var bases: [NamedCut] = []
    var snapshots: [HeldCut] = []
    /// The newest base, as long as it has been that ever since it was made.
    private(set) var exactBase: String?

    /// Bytes changed.
    mutating func changed(_ range: Range<Int>) {
        periods[periods.count - 1].formUnion(Self.blocks(range))
    }

    /// Bytes were declared as changed: before the cut of each held snapshot too.
    mutating func marked(_ range: Range<Int>) {
        changed(range)
        for snapshot in snapshots {
            periods[snapshot.period].formUnion(
                Self.blocks(range).filter { $0 * 4096 < snapshot.size })
        }
    }

    private static func blocks(_ range: Range<Int>) -> Range<Int> {
        range.lowerBound / 4096..<(range.upperBound + 4095) / 4096
    }

    /// A cut was made: with a name it is a base, with an image a held snapshot.
    mutating func cut(base: String?, snapshot: String?) {
        let period = periods.count - 1
        if let snapshot {
            snapshots.append(
                HeldCut(name: snapshot, period: period, size: size, exactBase: exactBase))
        }
        if let base {
            bases.append(NamedCut(name: base, period: period, size: size))
            exactBase = base
        }
        periods.append([])
    }

    /// A base was deleted.
    mutating func deleted(_ base: String) {
        bases.removeAll { $0.name == base }
        if exactBase == base { exactBase = nil }
    }

    /// The device grew.
    mutating func grew(to newSize: Int) {
        changed(size..<newSize)
        size = newSize
    }

    /// The device lost its end and with it its history.
    mutating func shrank(to newSize: Int) {
        size = newSize
        periods = [[]]
        bases = []
        exactBase = nil
    }

    /// The blocks that must be in an answer.
    func truth(since base: NamedCut, until snapshot: HeldCut?) -> Set<Int> {
        let last = snapshot?.period ?? periods.count - 1
        guard base.period < last else { return [] }
        var blocks = periods[base.period + 1...last].reduce(into: Set<Int>()) { $0.formUnion($1) }
        // The size of an image ends what can be said of it.
        let end = ((snapshot?.size ?? size) + 4095) / 4096
        blocks = blocks.filter { $0 < end }
        return blocks
    }

    /// Whether the answer may name nothing but those blocks.
    func isExact(since base: NamedCut, until snapshot: HeldCut?) -> Bool {
        (snapshot.map(\.exactBase) ?? exactBase) == base.name
    }
}
