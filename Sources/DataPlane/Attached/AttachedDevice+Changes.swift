package import BlockModel
package import Devices
internal import RingIO
internal import SnapshotCore

// Questions about changes. They work through the change map in slices of at most a millisecond on
// the loop, one message each, so that requests pass in between.
//
// Invariants
// - All slices of an answer belong to one generation; one that ends meanwhile ends the question.
// - A page is full only between two ranges: putting pages together gives maximal ranges.

extension AttachedDevice {
    /// Entries of the map that one slice looks at: 0.3 ms where each second one is a range.
    private static let chunksPerSlice: UInt64 = 16384
    /// Ranges that one slice finds.
    private static let rangesPerSlice = 16384

    /// Answers a question about changes, one page at a time.
    package func changes(_ query: ChangesQuery) async -> Result<ChangesPage, ChangesRefusal> {
        if let refusal = await takeMarks(for: query) { return .failure(refusal) }
        if case .everything = query.since { return await contents(query) }
        let buffer = RangeBuffer(capacity: Self.rangesPerSlice)
        let (device, until) = (device, query.until)
        var page: PageCollector?
        var position = query.offset
        while true {
            let start = position
            let outcome = await loop.mailbox.run { loop in
                device.get(on: loop).changesSlice(
                    query, until: until?.get(on: loop), from: start,
                    chunkBudget: Self.chunksPerSlice, into: buffer)
            }
            guard let outcome else { return .failure(.busy) }
            let slice: ChangesSlice
            switch outcome {
            case .success(let found): slice = found
            case .failure(let refusal): return .failure(refusal)
            }
            var collector = page ?? PageCollector(slice, query)
            guard slice.generation == collector.page.generation else {
                return .failure(.generationUnknown)
            }
            buffer.withRanges(slice.count) { collector.add($0) }
            position = slice.resumeOffset
            if collector.isFull || position >= slice.end {
                return .success(collector.finished())
            }
            page = collector
        }
    }

    // MARK: Bases

    /// The newest cut that queries can name is that of `epoch`, 0 when there is none: marks are
    /// exact for it. Before the device's first write.
    package func setNewestBase(_ epoch: UInt32, of generation: Generation) async {
        await changeNewestBase(of: generation) { _ in epoch }
    }

    /// The cut of `removed` cannot be named any more; when it was the newest, `epoch` is that.
    package func baseRemoved(
        _ removed: Epoch, newest epoch: UInt32, of generation: Generation
    ) async {
        await changeNewestBase(of: generation) { $0 == removed.rawValue ? epoch : nil }
    }

    private func changeNewestBase(
        of generation: Generation, _ choose: @escaping @Sendable (UInt32) -> UInt32?
    ) async {
        let device = device
        let done: Void? = await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            guard device.generation == generation,
                let base = choose(device.engine.newestBase), base < device.engine.epoch.rawValue
            else { return }
            device.newestBaseChanged(to: base)
        }
        precondition(done != nil, "a loop does not stop while it has devices")
    }
}

/// The ranges of a page, put together from slices.
struct PageCollector {
    private(set) var page: ChangesPage
    private let rangeCountMax: Int
    /// The next page begins with what did not fit.
    private(set) var isFull = false

    init(_ slice: ChangesSlice, _ query: ChangesQuery) {
        page = ChangesPage(
            generation: slice.generation, untilEpoch: slice.untilEpoch, size: slice.size,
            ranges: [], nextOffset: nil)
        rangeCountMax = query.rangeCountMax
    }

    mutating func add(_ ranges: some Sequence<ByteRange>) {
        for range in ranges where !isFull {
            if let last = page.ranges.last, last.end == range.offset {
                page.ranges[page.ranges.count - 1] = ByteRange(
                    offset: last.offset, length: last.length + range.length)
                continue
            }
            guard page.ranges.count < rangeCountMax else {
                page.nextOffset = range.offset
                isFull = true
                continue
            }
            page.ranges.append(range)
        }
    }

    /// The answer continues at `offset`, although it has room.
    mutating func endedEarly(at offset: UInt64) { page.nextOffset = offset }

    func finished() -> ChangesPage { page }
}
