internal import BlockModel

// How the changes of a device are spread over it, in cells of equal size: what a picture needs.
//
//     entries of the map   |e e e e|e e e e|0 0 0 0| ...     one pass, in slices
//     cells                |  c0   |  c1   |  c2   | ...     blocks since one cut, newest epoch
//     cuts                 blocks changed since each of them
//
// Invariants
// - A summary never says less than a query of changes with the same base: both read an entry with
//   `blocksChanged`, and both count what grew since the cut.
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

/// Counts of changes, cell by cell and cut by cut; see the head of this file. A value of pointers:
/// the owner of the memory outlives it.
package struct ChangeSummary {
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

    package let grid: Grid
    private let cells: UnsafeMutableBufferPointer<Cell>
    private let cuts: UnsafeBufferPointer<SummaryCut>
    /// Blocks that changed since each of `cuts`.
    private let changedBlockCounts: UnsafeMutableBufferPointer<UInt64>
    /// Which of `cuts` the cells are about.
    private let subject: Int

    /// Counts into `cells` and `changedBlockCounts`, which hold zeroes and stay the caller's.
    package init(
        grid: Grid, cells: UnsafeMutableBufferPointer<Cell>,
        cuts: UnsafeBufferPointer<SummaryCut>,
        changedBlockCounts: UnsafeMutableBufferPointer<UInt64>, subject: Int
    ) {
        precondition(cells.count == grid.cellCount, "a cell has a place")
        precondition(cuts.count == changedBlockCounts.count, "a cut has a count")
        precondition(cuts.indices.contains(subject), "cells are about one of the cuts")
        self.grid = grid
        self.cells = cells
        self.cuts = cuts
        self.changedBlockCounts = changedBlockCounts
        self.subject = subject
    }

    /// Counts the entry of `chunk`.
    mutating func add(_ entry: ChangeEntry, of chunk: UInt64) {
        let first = chunk * blocksPerChunk
        guard first < grid.blockCount else { return }
        let present = Self.mask(before: grid.blockCount, from: first)
        for index in cuts.indices {
            let cut = cuts[index]
            // What lies behind the end at the cut is counted as a whole, at the end.
            let blocks =
                entry.blocksChanged(since: cut.epoch) & present
                & Self.mask(before: cut.wholeBlockCount, from: first)
            changedBlockCounts[index] &+= UInt64(blocks.nonzeroBitCount)
            if index == subject { addToCells(blocks, from: first) }
        }
        let last = min(first + blocksPerChunk, grid.blockCount) - 1
        for cell in Int(first / grid.blocksPerCell)...Int(last / grid.blocksPerCell)
        where grid.blocksPerCell >= blocksPerChunk || isTouched(cell, by: entry, from: first) {
            cells[cell].epoch = max(cells[cell].epoch, entry.epoch)
        }
    }

    /// Counts what grew since each cut. Once, last.
    mutating func finish() {
        for index in cuts.indices {
            let cut = cuts[index]
            guard cut.wholeBlockCount < grid.blockCount else { continue }
            changedBlockCounts[index] += grid.blockCount - cut.wholeBlockCount
            let first = cut.wholeBlockCount / grid.blocksPerCell
            for cell in Int(first)..<grid.cellCount {
                let start = max(UInt64(cell) * grid.blocksPerCell, cut.wholeBlockCount)
                let end = min(UInt64(cell + 1) * grid.blocksPerCell, grid.blockCount)
                if index == subject { cells[cell].changedBlockCount += end - start }
                cells[cell].epoch = max(cells[cell].epoch, cut.epoch + 1)
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

    /// Adds the entries from `chunk` on to a summary, until about `budget` entries were looked at;
    /// one that changed counts for several.
    package func summarize(
        into summary: inout ChangeSummary, from chunk: UInt64, costOfChanged: Int, budget: Int
    ) -> SummaryStep {
        let end = min(
            chunkCount, (summary.grid.blockCount + blocksPerChunk - 1) / blocksPerChunk)
        var position = chunk
        var left = budget
        while position < end {
            position = nextReserved(from: position)
            guard position < end else { break }
            guard left > 0 else { return .goesOn(at: position) }
            let pageEnd = min((position / Self.entriesPerPage + 1) * Self.entriesPerPage, end)
            left -= Int(pageEnd - position)
            while position < pageEnd {
                let entry = entry(of: position)
                if entry != .unchanged {
                    guard entry.isPossible(atEpoch: current.rawValue) else { return .damaged }
                    summary.add(entry, of: position)
                    left -= costOfChanged
                }
                position += 1
            }
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
