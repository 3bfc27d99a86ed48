import Benchmark
import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

// What the rooms that decide cost by operation. Orders are fixed, so that runs do the same work.

private let deviceBytes: UInt64 = 1 << 30
private let chunkCount = deviceBytes / chunkByteCount

/// A change map in plain memory that lives as long as the process, all of it reserved.
private func makeMap() -> ChangeMap {
    let entries = UnsafeMutablePointer<UInt64>.allocate(capacity: Int(chunkCount))
    entries.initialize(repeating: 0, count: Int(chunkCount))
    let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
    let reserved = UnsafeMutablePointer<UInt64>.allocate(capacity: words)
    reserved.initialize(repeating: .max, count: words)
    return ChangeMap(
        entries: entries, reservedPages: reserved, chunkCount: chunkCount, current: .first,
        newestBase: 0)
}

/// Chunks far apart, each as often as any other.
private func chunk(_ number: Int) -> UInt64 { UInt64(number) &* 2_654_435_761 % chunkCount }

let benchmarks: @Sendable () -> Void = {
    Benchmark.defaultConfiguration = .init(
        metrics: [.wallClock, .throughput], scalingFactor: .kilo, maxDuration: .seconds(2))

    Benchmark("mark a block, scattered") { benchmark in
        let map = makeMap()
        benchmark.startMeasurement()
        for number in benchmark.scaledIterations { map.mark(1, of: chunk(number)) }
    }

    Benchmark("mark a block again") { benchmark in
        let map = makeMap()
        benchmark.startMeasurement()
        for _ in benchmark.scaledIterations { map.mark(1, of: 7) }
    }

    Benchmark("find the next changed chunk, every second one changed") { benchmark in
        let map = makeMap()
        for position in stride(from: 0, to: chunkCount, by: 2) { map.mark(1, of: position) }
        benchmark.startMeasurement()
        var position: UInt64 = 0
        for _ in benchmark.scaledIterations {
            position = map.nextChanged(from: position + 1, to: chunkCount, since: 0)
            if position == chunkCount { position = 0 }
        }
        blackHole(position)
    }

    Benchmark("look a chunk up in a layer") { benchmark in
        var layer = DifferenceLayer(byteCountMax: 256 << 20)
        for number in 0..<Int(chunkCount)
        where layer.findOrInsert(chunk(number), savedEntry: 0) == nil {
            benchmark.error("the layer is full")
            return
        }
        benchmark.startMeasurement()
        for number in benchmark.scaledIterations { blackHole(layer.find(chunk(number))) }
    }

    Benchmark("checksum of a block") { benchmark in
        let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 64)
        bytes.initializeMemory(as: UInt8.self, repeating: 0x5A)
        defer { bytes.deallocate() }
        benchmark.startMeasurement()
        for _ in benchmark.scaledIterations {
            blackHole(Checksum.crc32c(UnsafeRawBufferPointer(bytes)))
        }
    }
}
