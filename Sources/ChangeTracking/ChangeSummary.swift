internal import BlockModel

// How the changes of a device are spread over it, in cells of equal size: what a picture needs.
//
//     entries of the map   |e e e e|e e e e|0 0 0 0| ...     one pass, in slices
//     cells                |  c0   |  c1   |  c2   | ...     blocks since one cut, newest epoch
//     cuts                 blocks changed since each of them
//
// For every cut before its epoch an entry counts as changed: with exactly its blocks as far back as it
// reaches, with the whole chunk for older cuts. With the newest cut first these are two steps:
//
//     cuts, the newest first    k0   k1   k2   k3   k4
//     blocks since each          0    3    3   16   16     epoch between k0 and k1, reach until k2
//     what is added up           0   +3    0  +13    0
//
// So an entry costs two additions however many cuts are asked for, and a run of equal entries costs
// as much as one of them.
//
// Invariants
// - A summary never says less than a query of changes with the same base: both count the blocks that
//   `blocksChanged` names, and those that the device grew by since the cut.
// - Its memory is as large as was asked for, whatever the device holds; the loop allocates nothing.

/// A cut that changes are counted since.
package struct SummaryCut: Equatable, Sendable {
    /// The epoch that ended at the cut; 0: the start of the generation.
    package let epoch: UInt32
    /// Blocks of the device at the cut that were there as a whole: those behind changed.
    package let wholeBlockCount: UInt64

    package init(epoch: UInt32, byteCount: UInt64) {
        self.epoch = epoch
        wholeBlockCount = byteCount / blockByteCount
    }
}

/// Counts of changes, cell by cell and cut by cut; see the head of this file.
package struct ChangeSummary: ~Copyable {
    /// What is known of one cell.
    package struct Cell: Equatable, Sendable {
        /// Blocks that changed since the cut that cells are about.
        package var changedBlockCount: UInt64 = 0
        /// Epoch of the newest change, 0 when there was none.
        package var epoch: UInt32 = 0

        package init() {}
    }

    /// Cells of a device of `byteCount` bytes, and the blocks that each stands for: a power of two
    /// or whole chunks, so that no chunk lies in two cells by halves that differ.
    package struct Grid: Equatable, Sendable {
        package let blockCount: UInt64
        package let blocksPerCell: UInt64
        package let cellCount: Int

        /// At most `cellCountMax` cells.
        package init(byteCount: UInt64, cellCountMax: Int) {
            precondition(cellCountMax > 0, "a device has a cell at least")
            blockCount = byteCount / blockByteCount + (byteCount % blockByteCount == 0 ? 0 : 1)
            let wanted = UInt64(cellCountMax)
            let least = max(1, blockCount / wanted + (blockCount % wanted == 0 ? 0 : 1))
            if least >= blocksPerChunk {
                blocksPerCell = (least + blocksPerChunk - 1) / blocksPerChunk * blocksPerChunk
            } else {
                var power: UInt64 = 1
                while power < least { power *= 2 }
                blocksPerCell = power
            }
            cellCount = Int(
                blockCount / blocksPerCell + (blockCount % blocksPerCell == 0 ? 0 : 1))
        }
    }

    /// What is added up for a cut.
    private struct Tally {
        let epoch: UInt32
        let wholeBlockCount: UInt64
        /// Its place among the cuts that were given.
        let place: Int
        /// Blocks more than for the cut before it in this order. May wrap; the sums do not.
        var step: UInt64 = 0
        /// Blocks counted for this cut alone; once finished, all of them.
        var blockCount: UInt64 = 0
    }

    /// Where an epoch lies among the cuts, found before.
    private struct Place {
        var epoch: UInt32
        var index: UInt32
    }

    package let grid: Grid
    /// Chunks of the device, the last one perhaps not whole.
    let chunkCount: UInt64
    private let chunksPerCell: UInt64
    /// Chunks before this one are whole, belong to one cell, and were there at every cut.
    private let plainEnd: UInt64
    private let cells: UnsafeMutableBufferPointer<Cell>
    /// The newest cut first; one more at the end takes the steps that no cut sees.
    private let tallies: UnsafeMutableBufferPointer<Tally>
    private let cutCount: Int
    /// Which of `tallies` the cells are about.
    private let subject: Int
    private let places: UnsafeMutableBufferPointer<Place>

    /// A power of two. Few devices have more epochs in their map.
    private static let placeCount = 256
    /// Costs of a run of entries, and of each cut for an entry that is counted cut by cut. The unit is
    /// one entry that equals the one before.
    private static let costOfRun = 10
    private static let costOfCut = 2

    /// Counts since each of `cuts`; cells are about the one at `subject`.
    package init(grid: Grid, cuts: [SummaryCut], subject: Int) {
        precondition(cuts.indices.contains(subject), "cells are about one of the cuts")
        self.grid = grid
        chunkCount = (grid.blockCount + blocksPerChunk - 1) / blocksPerChunk
        chunksPerCell = max(1, grid.blocksPerCell / blocksPerChunk)
        let wholeBlockCount = cuts.reduce(grid.blockCount) { min($0, $1.wholeBlockCount) }
        plainEnd = grid.blocksPerCell < blocksPerChunk ? 0 : wholeBlockCount / blocksPerChunk
        cells = .allocate(capacity: grid.cellCount)
        cells.initialize(repeating: Cell())
        let order = cuts.indices.sorted { cuts[$0].epoch > cuts[$1].epoch }
        cutCount = cuts.count
        tallies = .allocate(capacity: cuts.count + 1)
        tallies.initialize(repeating: Tally(epoch: 0, wholeBlockCount: 0, place: -1))
        for (index, place) in order.enumerated() {
            tallies[index] = Tally(
                epoch: cuts[place].epoch, wholeBlockCount: cuts[place].wholeBlockCount,
                place: place)
        }
        self.subject = order.firstIndex(of: subject) ?? 0
        places = .allocate(capacity: Self.placeCount)
        // True of epoch 0, which lies before every cut, and looked for under it alone.
        places.initialize(repeating: Place(epoch: 0, index: UInt32(cuts.count)))
    }

    deinit {
        cells.deallocate()
        tallies.deallocate()
        places.deallocate()
    }

    /// The cells, in device order. Once finished.
    package var cellCounts: [Cell] { Array(cells) }

    /// Blocks that changed since each cut, in the order in which the cuts were given. Once finished.
    package var changedBlockCounts: [UInt64] {
        var counts = [UInt64](repeating: 0, count: cutCount)
        for tally in tallies.prefix(cutCount) { counts[tally.place] = tally.blockCount }
        return counts
    }

    /// Counts entries that follow each other from chunk `first` on; returns what that cost in
    /// entries looked at, nil when one cannot be by epoch `current`.
    mutating func add(
        _ entries: UnsafeBufferPointer<UInt64>, from first: UInt64, atEpoch current: UInt32
    ) -> Int? {
        var cost = entries.count
        var index = 0
        while index < entries.count {
            let chunk = first + UInt64(index)
            let cell = chunk / chunksPerCell
            let isPlain = chunk < plainEnd
            let cellEnd = isPlain ? min((cell + 1) * chunksPerCell, plainEnd) : chunk + 1
            let end = min(entries.count, index + Int(cellEnd - chunk))
            while index < end {
                let entry = ChangeEntry(rawValue: entries[index])
                var next = index + 1
                while next < end, entries[next] == entry.rawValue { next += 1 }
                if entry != .unchanged {
                    guard entry.isPossible(atEpoch: current) else { return nil }
                    if isPlain {
                        add(entry, count: UInt64(next - index), to: Int(cell))
                        cost += Self.costOfRun
                    } else {
                        add(entry, of: chunk)
                        cost += Self.costOfRun + Self.costOfCut * cutCount
                    }
                }
                index = next
            }
        }
        return cost
    }

    /// Counts an entry that `count` plain chunks of a cell share.
    @inline(__always)
    private mutating func add(_ entry: ChangeEntry, count: UInt64, to cell: Int) {
        // Nothing overflows: a page has 512 entries, 16 blocks each, a device fewer than 2^52 blocks.
        let all = blocksPerChunk &* count
        let exact = UInt64(truncatingIfNeeded: entry.blocks.nonzeroBitCount) &* count
        let changed = place(of: entry.epoch)
        let unknown = place(of: entry.epoch &- UInt32(entry.reach))
        tallies[changed].step &+= exact
        tallies[unknown].step &+= all &- exact
        let own = subject < changed ? 0 : subject < unknown ? exact : all
        cells[cell].changedBlockCount &+= own
        cells[cell].epoch = max(cells[cell].epoch, entry.epoch)
    }

    /// The first of the tallies whose cut ended an epoch before `epoch`.
    @inline(__always)
    private mutating func place(of epoch: UInt32) -> Int {
        let slot = Int(epoch) & (Self.placeCount - 1)
        if places[slot].epoch == epoch { return Int(places[slot].index) }
        return findPlace(of: epoch, slot)
    }

    @inline(never)
    private mutating func findPlace(of epoch: UInt32, _ slot: Int) -> Int {
        var index = 0
        while index < cutCount, tallies[index].epoch >= epoch { index += 1 }
        places[slot] = Place(epoch: epoch, index: UInt32(index))
        return index
    }

    /// Counts the entry of a chunk that is not plain, for each cut.
    private mutating func add(_ entry: ChangeEntry, of chunk: UInt64) {
        let first = chunk * blocksPerChunk
        let present = Self.mask(before: grid.blockCount, from: first)
        for index in 0..<cutCount {
            // What lies behind the end at the cut is counted as a whole, at the end.
            let blocks =
                entry.blocksChanged(since: tallies[index].epoch) & present
                & Self.mask(before: tallies[index].wholeBlockCount, from: first)
            tallies[index].blockCount += UInt64(blocks.nonzeroBitCount)
            if index == subject { addToCells(blocks, from: first) }
        }
        let last = min(first + blocksPerChunk, grid.blockCount) - 1
        for cell in Int(first / grid.blocksPerCell)...Int(last / grid.blocksPerCell)
        where grid.blocksPerCell >= blocksPerChunk || isTouched(cell, by: entry, from: first) {
            cells[cell].epoch = max(cells[cell].epoch, entry.epoch)
        }
    }

    /// Adds the steps up and counts what grew since each cut. Once, last.
    mutating func finish() {
        var blockCount: UInt64 = 0
        for index in 0..<cutCount {
            blockCount &+= tallies[index].step
            tallies[index].blockCount += blockCount
            let wholeBlockCount = tallies[index].wholeBlockCount
            guard wholeBlockCount < grid.blockCount else { continue }
            tallies[index].blockCount += grid.blockCount - wholeBlockCount
            for cell in Int(wholeBlockCount / grid.blocksPerCell)..<grid.cellCount {
                let start = max(UInt64(cell) * grid.blocksPerCell, wholeBlockCount)
                let end = min(UInt64(cell + 1) * grid.blocksPerCell, grid.blockCount)
                if index == subject { cells[cell].changedBlockCount += end - start }
                cells[cell].epoch = max(cells[cell].epoch, tallies[index].epoch + 1)
            }
        }
    }

    private func addToCells(_ blocks: UInt16, from first: UInt64) {
        guard grid.blocksPerCell < blocksPerChunk else {
            cells[Int(first / grid.blocksPerCell)].changedBlockCount &+= UInt64(
                blocks.nonzeroBitCount)
            return
        }
        var rest = blocks
        while rest != 0 {
            let block = first + UInt64(rest.trailingZeroBitCount)
            cells[Int(block / grid.blocksPerCell)].changedBlockCount += 1
            rest &= rest &- 1
        }
    }

    /// Of small cells only those that the entry's blocks lie in changed with it. Blocks of epochs
    /// before the last may be among them, never the other way round.
    private func isTouched(_ cell: Int, by entry: ChangeEntry, from first: UInt64) -> Bool {
        let start = UInt64(cell) * grid.blocksPerCell - first
        let own = ((UInt16(1) << UInt16(grid.blocksPerCell)) &- 1) << UInt16(start)
        return entry.blocks & own != 0
    }

    /// The blocks of a chunk that begins with block `first` which lie before block `end`.
    private static func mask(before end: UInt64, from first: UInt64) -> UInt16 {
        guard first + blocksPerChunk > end else { return .max }
        guard first < end else { return 0 }
        return (UInt16(1) << UInt16(end - first)) &- 1
    }
}

extension ChangeMap {
    /// How a part of a summary ended.
    package enum SummaryStep: Equatable, Sendable {
        /// There is more, from this chunk on.
        case goesOn(at: UInt64)
        case finished
        /// The map holds an entry that cannot be.
        case damaged
    }

    /// Adds the entries from `chunk` on to a summary, until as much work was done as looking at
    /// about `budget` equal entries takes.
    package func summarize(
        into summary: inout ChangeSummary, from chunk: UInt64, budget: Int
    ) -> SummaryStep {
        let end = min(chunkCount, summary.chunkCount)
        var position = chunk
        var left = budget
        while position < end {
            position = nextReserved(from: position)
            guard position < end else { break }
            guard left > 0 else { return .goesOn(at: position) }
            let pageEnd = min((position / Self.entriesPerPage + 1) * Self.entriesPerPage, end)
            let page = UnsafeBufferPointer(
                start: entries + Int(position), count: Int(pageEnd - position))
            guard let cost = summary.add(page, from: position, atEpoch: current.rawValue) else {
                return .damaged
            }
            left -= cost
            position = pageEnd
        }
        summary.finish()
        return .finished
    }

    /// Pages that may be touched, each of `entriesPerPage` entries.
    package var reservedPageCount: UInt64 {
        var count: UInt64 = 0
        for word in 0..<Self.reservationWordCount(chunkCount: chunkCount) {
            count += UInt64(reservedPages[word].nonzeroBitCount)
        }
        return count
    }
}
