package import BlockModel

// The cuts that exports of a device name in their meta contexts: `qemu:dirty-bitmap:NAME` and
// `stillpoint:changes:NAME` say what changed since the cut called NAME.
//
// Invariants
// - A list never changes: exports share it, handshakes read it on any thread. Another set of
//   checkpoints is another list.
// - An image names a suffix of its device's list, for lists begin with the newest cut. Its own cut
//   is not in it: nothing changed between the two.

/// The cuts of a device that can be named, all of one generation.
package final class ExportBases: Sendable {
    /// A cut and its name.
    package struct Entry: Sendable {
        package var name: String
        package var base: TrackingBase

        package init(name: String, base: TrackingBase) {
            self.name = name
            self.base = base
        }
    }

    /// The newest first.
    fileprivate let entries: [Entry]
    /// Places in `entries` by name.
    fileprivate let places: [String: Int]

    /// Entries of other generations than `generation` are left out; so are later ones of a name.
    package init(_ entries: [Entry], generation: Generation) {
        var places: [String: Int] = [:]
        var sorted: [Entry] = []
        let usable = entries.filter { $0.base.generation == generation }
        for entry in usable.sorted(by: { $0.base.epoch > $1.base.epoch })
        where places[entry.name] == nil {
            places[entry.name] = sorted.count
            sorted.append(entry)
        }
        self.entries = sorted
        self.places = places
        self.generation = generation
    }

    private let generation: Generation

    /// All of them, for the device itself.
    package var all: View { View(bases: self, first: 0) }

    /// Those before the cut that ended `epoch`, for an image of that cut; none when the cut is of
    /// another generation.
    package func view(before epoch: Epoch, of generation: Generation) -> View {
        guard generation == self.generation else { return View(bases: self, first: entries.count) }
        var low = 0
        var high = entries.count
        while low < high {
            let middle = (low + high) / 2
            if entries[middle].base.epoch >= epoch { low = middle + 1 } else { high = middle }
        }
        return View(bases: self, first: low)
    }

    /// The part of a list that an export names.
    package struct View: Sendable {
        private let bases: ExportBases
        private var range: Range<Int>
        /// The client asked for this one and is told of no other.
        private(set) var isSingle = false

        fileprivate init(bases: ExportBases, first: Int) {
            self.bases = bases
            range = first..<bases.entries.count
        }

        /// The newest of them, `count` at most.
        func newest(_ count: Int) -> ArraySlice<Entry> {
            bases.entries[range].prefix(count)
        }

        /// The cut of that name.
        func base(named name: Substring) -> TrackingBase? {
            place(of: name).map { bases.entries[$0].base }
        }

        /// The cut of that name alone; nil when it is not among them.
        package func only(_ name: Substring) -> View? {
            guard let place = place(of: name) else { return nil }
            var view = self
            view.range = place..<place + 1
            view.isSingle = true
            return view
        }

        private func place(of name: Substring) -> Int? {
            bases.places[String(name)].flatMap { range.contains($0) ? $0 : nil }
        }
    }
}
