import BlockModel
import CLinux
import ChangeTracking
import Glibc

// What tracking costs by itself, without I/O: nanoseconds for each mark, and the scan of a change
// map of 1 TiB in which every second chunk changed, round by round. Prints one line of JSON for
// each; `make bench` runs it.

/// A map in plain memory with every page reserved.
final class BenchMap {
    private let entries: UnsafeMutablePointer<UInt64>
    private let reserved: UnsafeMutablePointer<UInt64>
    var map: ChangeMap

    init(byteCount: UInt64) {
        let chunkCount = byteCount / chunkByteCount
        entries = .allocate(capacity: Int(chunkCount))
        entries.initialize(repeating: 0, count: Int(chunkCount))
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        reserved = .allocate(capacity: words)
        reserved.initialize(repeating: 0, count: words)
        map = ChangeMap(
            entries: entries, reservedPages: reserved, chunkCount: chunkCount, current: .first,
            newestBase: 0)
        for page in 0..<ChangeMap.pageCount(chunkCount: chunkCount) { map.pageReserved(page) }
    }

    deinit {
        entries.deallocate()
        reserved.deallocate()
    }
}

/// Time of a processor that this process had: others that want it too do not count.
func nanoseconds() -> UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

/// Random blocks of a device.
struct RandomBlocks {
    private var state: UInt64 = 42
    private let mask: UInt64

    init(deviceBytes: UInt64) { mask = deviceBytes / blockByteCount - 1 }

    /// xorshift64: the cheapest numbers that are spread well enough.
    mutating func next() -> UInt64 {
        state ^= state << 13
        state ^= state >> 7
        state ^= state << 17
        return state & mask
    }
}

/// What marking adds to a loop over random blocks, with a cut every `cutInterval` marks: nine
/// rounds, nanoseconds per mark. Before each round the same blocks are drawn without being marked,
/// and that time is taken off: it is not what a mark costs.
/// `isForeseen`: the entry is fetched 16 marks ahead, as the service does when it has seen a
/// write's header and has its payload, about a microsecond of work, still to take.
func markCosts(deviceBytes: UInt64, cutInterval: Int, isForeseen: Bool) -> [Double] {
    let bench = BenchMap(byteCount: deviceBytes)
    let count = 2_000_000
    var blocks = RandomBlocks(deviceBytes: deviceBytes)
    var unmarkedBlocks = blocks
    var rounds: [Double] = []
    var foreseen = InlineArray<16, UInt64>(repeating: 0)
    var sum: UInt64 = 0
    for _ in 0..<9 {
        let start = nanoseconds()
        for _ in 0..<count { sum &+= unmarkedBlocks.next() / blocksPerChunk }
        let unmarked = nanoseconds()
        for number in 0..<count {
            var block = blocks.next()
            if isForeseen {
                if let entry = bench.map.address(ofEntry: block / blocksPerChunk) {
                    cl_prefetch(entry)
                }
                let next = block
                block = foreseen[number & 15]
                foreseen[number & 15] = next
            }
            bench.map.mark(1 << UInt16(block % blocksPerChunk), of: block / blocksPerChunk)
            if number % cutInterval == cutInterval - 1 { _ = bench.map.cutMade(isBase: true) }
        }
        let marked = nanoseconds()
        rounds.append((Double(marked - unmarked) - Double(unmarked - start)) / Double(count))
    }
    // Else the blocks that are not marked would have no use, and be left out.
    precondition(sum > 0, "random blocks are not all the first")
    return rounds
}

/// Scans a map of 1 TiB whose every second chunk changed, in pages; seconds of five rounds.
func scanSeconds() -> (seconds: [Double], ranges: Int) {
    let size: UInt64 = 1 << 40
    let bench = BenchMap(byteCount: size)
    for chunk in stride(from: 0, to: size / chunkByteCount, by: 2) { bench.map.mark(1, of: chunk) }
    let page = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: 16384)
    defer { page.deallocate() }
    var rounds: [Double] = []
    var count = 0
    for _ in 0..<5 {
        count = 0
        let start = nanoseconds()
        var ranges = ChangedRanges(into: page, from: 0, size: size)
        var chunk = bench.map.nextChanged(from: 0, to: bench.map.chunkCount, since: 0)
        while chunk < bench.map.chunkCount {
            ranges.add(
                blocks: bench.map.entry(of: chunk).blocksChanged(since: 0), of: chunk)
            if ranges.isFull {
                count += ranges.count
                ranges = ChangedRanges(into: page, from: ranges.resumeOffset, size: size)
                continue
            }
            chunk = bench.map.nextChanged(from: chunk + 1, to: bench.map.chunkCount, since: 0)
        }
        ranges.finish()
        count += ranges.count
        rounds.append(Double(nanoseconds() - start) / 1e9)
    }
    return (rounds, count)
}

for (name, size) in [
    ("1 GiB", UInt64(1) << 30), ("16 GiB", 16 << 30), ("64 GiB", 64 << 30), ("1 TiB", 1 << 40),
] {
    for (interval, isForeseen) in [(2_000_000, true), (10_000, true), (2_000_000, false)] {
        let costs = markCosts(
            deviceBytes: size, cutInterval: interval, isForeseen: isForeseen)
        print(
            "{\"mark_nanoseconds\":\(costs),\"device\":\"\(name)\",\"marks_per_cut\":\(interval)"
                + ",\"foreseen\":\(isForeseen)}")
    }
}
let scan = scanSeconds()
print("{\"scan_seconds\":\(scan.seconds),\"device\":\"1 TiB\",\"ranges\":\(scan.ranges)}")
