import BlockModel
import ChangeTracking
import Glibc
import Testing

@Suite struct `A summary of changes` {
    @Test(arguments: [
        (byteCount: UInt64(1) << 44, cells: 2048), (byteCount: 16 << 20, cells: 1024),
        (byteCount: 4097, cells: 4096), (byteCount: 1, cells: 1), (byteCount: 1 << 30, cells: 1000),
        (byteCount: 0, cells: 10),
    ])
    func `has cells that cover the device, and not more than asked for`(
        byteCount: UInt64, cells: Int
    ) {
        let grid = ChangeSummary.Grid(byteCount: byteCount, cellCountMax: cells)
        #expect(grid.cellCount <= cells)
        #expect(UInt64(grid.cellCount) * grid.blocksPerCell >= grid.blockCount)
        #expect(
            grid.cellCount == 0 || UInt64(grid.cellCount - 1) * grid.blocksPerCell < grid.blockCount
        )
        let isPower = grid.blocksPerCell.nonzeroBitCount == 1
        #expect(isPower || grid.blocksPerCell % blocksPerChunk == 0)
    }

    /// Marks at random over several cuts, and compares with what queries say of each cut, block by
    /// block. With seed 3 there are more epochs than places are remembered for.
    @Test(arguments: [7, 64, 300, 4096], [UInt64(1), 2, 3])
    func `says what queries say`(cellCount: Int, seed: UInt64) {
        let roundCount = seed == 3 ? 700 : 6
        var state = seed
        func random(_ limit: UInt64) -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % limit
        }
        // Four pages of the map, one of them never reserved, and a last chunk that is not whole.
        let blockCount: UInt64 = 4 * 512 * 16 - 5
        let memory = MapMemory(chunkCount: (blockCount + 15) / 16, reserve: false)
        for page: UInt64 in [0, 1, 3] { memory.map.pageReserved(page) }
        var cuts: [SummaryCut] = []
        for round in 0..<roundCount {
            for _ in 0..<1200 / roundCount {
                let chunk = random(memory.map.chunkCount)
                guard memory.map.isReserved(page: ChangeMap.page(of: chunk)) else { continue }
                memory.map.mark(UInt16(truncatingIfNeeded: 1 + random(65535)), of: chunk)
            }
            // Chunks that follow each other and change alike.
            let (start, blocks) = (random(1000), UInt16(truncatingIfNeeded: 1 + random(65535)))
            for chunk in start..<min(start + random(30), 1024) {
                memory.map.mark(blocks, of: chunk)
            }
            let isBase = round < 6 ? round % 2 == 0 : round % 40 == 0
            let ended = memory.map.cutMade(isBase: isBase)
            if isBase {
                // One was made when the device was smaller.
                let size = round == 2 ? blockCount - 1000 : blockCount
                cuts.append(SummaryCut(epoch: ended.rawValue, byteCount: size * 4096))
            }
        }
        memory.map.mark(1, of: 3)
        cuts.append(SummaryCut(epoch: 0, byteCount: blockCount * 4096))
        let grid = ChangeSummary.Grid(byteCount: blockCount * 4096, cellCountMax: cellCount)
        let subject = Int(random(UInt64(cuts.count)))
        var summary = ChangeSummary(grid: grid, cuts: cuts, subject: subject)
        var chunk: UInt64 = 0
        scan: while true {
            switch memory.map.summarize(
                into: &summary, from: chunk, budget: 100)
            {
            case .goesOn(let next):
                #expect(next > chunk)
                chunk = next
            case .finished: break scan
            case .damaged:
                Issue.record("the map is sound")
                return
            }
        }
        for (index, cut) in cuts.enumerated() {
            var changed = [UInt64](repeating: 0, count: grid.cellCount)
            var total: UInt64 = 0
            for block in 0..<blockCount {
                let entry = memory.map.entry(of: block / 16)
                let isMarked =
                    entry.blocksChanged(since: cut.epoch) & (1 << UInt16(block % 16)) != 0
                guard isMarked || block >= cut.wholeBlockCount else { continue }
                total += 1
                changed[Int(block / grid.blocksPerCell)] += 1
            }
            #expect(summary.changedBlockCounts[index] == total, "cut \(index)")
            if index == subject { #expect(summary.cellCounts.map(\.changedBlockCount) == changed) }
        }
        for (cell, found) in summary.cellCounts.enumerated() where grid.blocksPerCell >= 16 {
            let first = UInt64(cell) * grid.blocksPerCell
            let chunks = first / 16..<(min(first + grid.blocksPerCell, blockCount) + 15) / 16
            var newest = chunks.map { memory.map.entry(of: $0).epoch }.max() ?? 0
            for cut in cuts where chunks.upperBound * 16 > cut.wholeBlockCount {
                if cut.wholeBlockCount < blockCount { newest = max(newest, cut.epoch + 1) }
            }
            #expect(found.epoch == newest, "cell \(cell)")
        }
    }

    @Test func `finds damage as queries do`() {
        let memory = MapMemory(chunkCount: 100)
        memory.entries[50] = 0xFFFF
        let grid = ChangeSummary.Grid(byteCount: 100 * 65536, cellCountMax: 10)
        var summary = ChangeSummary(
            grid: grid, cuts: [SummaryCut(epoch: 0, byteCount: 100 * 65536)], subject: 0)
        let step = memory.map.summarize(into: &summary, from: 0, budget: 1000)
        #expect(step == .damaged)
    }

    @Test func `is finished in bounded slices, however large the device`() {
        // 16 TiB of address space with one page in use.
        let chunkCount: UInt64 = 1 << 28
        let memory = SparseMap(chunkCount: chunkCount)
        memory.map.pageReserved(ChangeMap.pageCount(chunkCount: chunkCount) - 1)
        memory.map.mark(3, of: chunkCount - 1)
        let grid = ChangeSummary.Grid(byteCount: 1 << 44, cellCountMax: 2048)
        var summary = ChangeSummary(
            grid: grid, cuts: [SummaryCut(epoch: 0, byteCount: 1 << 44)], subject: 0)
        let step = memory.map.summarize(into: &summary, from: 0, budget: 1000)
        #expect(step == .finished)
        #expect(summary.cellCounts[2047].changedBlockCount == 2)
        #expect(memory.map.reservedPageCount == 1)
    }
}

/// A map in address space that is resident only where it is touched.
private final class SparseMap {
    private let memory: UnsafeMutableRawPointer
    private let reserved: UnsafeMutablePointer<UInt64>
    var map: ChangeMap

    init(chunkCount: UInt64) {
        memory = mmap(
            nil, Int(chunkCount * 8), PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)!
        self.byteCount = Int(chunkCount * 8)
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        reserved = .allocate(capacity: words)
        reserved.initialize(repeating: 0, count: words)
        map = ChangeMap(
            entries: memory.bindMemory(to: UInt64.self, capacity: Int(chunkCount)),
            reservedPages: reserved, chunkCount: chunkCount, current: .first, newestBase: 0)
    }

    private let byteCount: Int

    deinit {
        munmap(memory, byteCount)
        reserved.deallocate()
    }
}
