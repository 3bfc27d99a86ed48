import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import Glibc
import SnapshotCore

// Work to be counted under callgrind, which the whole program cannot run under (valgrind 3.19 does
// not survive libdispatch's signal thread, nor a thread that waits in io_uring beside others).
// `Scripts/count-instructions` runs each twice, with different counts, and takes the difference:
// what starting and ending cost falls out.
//
//   count-work mark COUNT        marks as many blocks in a change map
//   count-work preserve COUNT    overwrites as many blocks under a held snapshot, in the engine
//   count-work summarize COUNT   looks at as many entries of a change map, no two neighbours equal

/// A change map in plain memory.
struct PlainMap {
    let map: ChangeMap

    init(size: UInt64) {
        let chunkCount = size / chunkByteCount
        let entries = UnsafeMutablePointer<UInt64>.allocate(capacity: Int(chunkCount))
        entries.initialize(repeating: 0, count: Int(chunkCount))
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        let reserved = UnsafeMutablePointer<UInt64>.allocate(capacity: words)
        reserved.initialize(repeating: .max, count: words)
        // Both live as long as the process.
        map = ChangeMap(
            entries: entries, reservedPages: reserved, chunkCount: chunkCount, current: .first,
            newestBase: 0)
    }
}

let deviceBytes: UInt64 = 1 << 30

/// Blocks in an order that touches each chunk of the device many times, far apart.
func block(_ number: UInt64) -> UInt64 {
    number &* 2_654_435_761 % (deviceBytes / blockByteCount)
}

func mark(_ count: UInt64) {
    let map = PlainMap(size: deviceBytes).map
    for number in 0..<count {
        let block = block(number)
        map.mark(1 << UInt16(block % blocksPerChunk), of: block / blocksPerChunk)
    }
}

func preserve(_ count: UInt64) {
    let buffers = BlockBuffers(capacity: 1024)
    let engine = SnapshotEngine(
        size: deviceBytes, map: PlainMap(size: deviceBytes).map, buffers: buffers,
        limits: EngineLimits())
    guard
        let snapshot = engine.snapshotPrepared(
            policy: .standard, account: 0),
        engine.sourceAdded(to: snapshot) != nil
    else { fail("the engine takes no snapshot") }
    engine.gateClosed(now: 0)
    _ = engine.cutSwitched(snapshot: snapshot, isBase: true)
    engine.gateOpened(now: 0)
    var worker = Worker(engine: engine)
    worker.perform()
    for number in 0..<count {
        let offset = block(number) * blockByteCount
        let slot = RequestIndex(UInt32(number % 32))
        let admission = engine.writeArrived(
            slot, operation: .write, offset: offset, length: blockByteCount,
            now: 0)
        if case .issue = admission { worker.finishWrite(slot) }
        worker.perform()
        if number % 32 == 31 {
            engine.turnEnded(now: 0)
            worker.perform()
        }
    }
    guard !engine.report(on: snapshot).isCorrupted else { fail("the snapshot was given up") }
}

func summarize(_ count: UInt64) {
    var map = PlainMap(size: deviceBytes).map
    var cuts = [SummaryCut(epoch: 0, byteCount: deviceBytes)]
    let chunkCount = deviceBytes / chunkByteCount
    for number in 0..<chunkCount {
        // Every chunk once, in an order that scatters each epoch over the device.
        let chunk = number &* 2_654_435_761 % chunkCount
        map.mark(1 << UInt16(chunk % blocksPerChunk), of: chunk)
        if number % (chunkCount / 32) == 0 {
            let epoch = map.cutMade(isBase: true)
            cuts.append(SummaryCut(epoch: epoch.rawValue, byteCount: deviceBytes))
        }
    }
    let grid = ChangeSummary.Grid(byteCount: deviceBytes, cellCountMax: 1024)
    for _ in 0..<count / chunkCount {
        var summary = ChangeSummary(grid: grid, cuts: cuts, subject: 0)
        guard map.summarize(into: &summary, from: 0, budget: .max) == .finished,
            summary.changedBlockCounts[0] == chunkCount
        else { fail("a summary is wrong") }
    }
}

/// Performs an engine's effects at once and without I/O.
struct Worker {
    let engine: SnapshotEngine
    private var nextExtent: UInt64 = 0
    private let checksums = Array(UInt32(1)...16)

    init(engine: SnapshotEngine) { self.engine = engine }

    func finishWrite(_ request: RequestIndex) {
        _ = engine.originWriteFinished(request, byteCount: blockByteCount, fault: nil)
    }

    mutating func perform() {
        while let effect = engine.nextEffect() {
            switch effect {
            case .issue(let request), .issuePart(let request, _, _): finishWrite(request)
            case .readOrigin(let copy, _, let length):
                engine.copyReadFinished(
                    copy, byteCount: length, fault: nil, zeroMask: 0, checksums: checksums)
            case .writeStorage(let batch, _, _, let blockCount):
                engine.storageWriteFinished(
                    batch, byteCount: UInt64(blockCount) * blockByteCount, fault: nil)
            case .requestExtent(let source, let purpose):
                engine.extentGranted(source, purpose, byteOffset: nextExtent)
                nextExtent += 4 << 20
            default: break
            }
        }
    }
}

func fail(_ text: String) -> Never {
    let bytes = Array("count-work: \(text)\n".utf8)
    _ = write(2, bytes, bytes.count)
    exit(1)
}

let arguments = CommandLine.arguments
switch (arguments.count, arguments.dropFirst().first) {
case (3, "mark"): mark(UInt64(arguments[2]) ?? 0)
case (3, "preserve"): preserve(UInt64(arguments[2]) ?? 0)
case (3, "summarize"): summarize(UInt64(arguments[2]) ?? 0)
default: fail("usage: count-work mark COUNT | preserve COUNT | summarize COUNT")
}
