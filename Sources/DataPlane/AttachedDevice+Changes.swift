package import BlockModel
package import RingIO
internal import SnapshotCore

// Questions about changes, and marks by hand. Both work through the change map in slices of at
// most a millisecond on the loop, one message each, so that requests pass in between.
//
// Invariants
// - All slices of an answer belong to one history; one that ends meanwhile ends the question.
// - A page is full only between two ranges: putting pages together gives maximal ranges.
// - A mark is applied wholly or not at all: what can fail (pages of the map, room in the held
//   snapshots) is done before its first block is marked, and one that a cut fell into is applied
//   once more, so that it counts wholly for that cut's queries too.

extension AttachedDevice {
    /// Entries of the map that one slice looks at: 0.3 ms where each second one is a range.
    private static let chunksPerSlice: UInt64 = 16384
    /// Ranges that one slice finds.
    private static let rangesPerSlice = 16384

    /// Answers a question about changes, one page at a time.
    package func changes(_ query: ChangesQuery) async -> Result<ChangesPage, ChangesRefusal> {
        if case .everything = query.since { return await contents(query) }
        let buffer = RangeBuffer(capacity: Self.rangesPerSlice)
        let (device, until) = (device, query.until?.part)
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
                return .failure(.historyUnknown)
            }
            collector.add(buffer.ranges[..<slice.count])
            position = slice.resumeOffset
            if collector.isFull || position >= slice.end {
                return .success(collector.finished())
            }
            page = collector
        }
    }

    // MARK: Marks

    /// Pages of the map that are made resident in one job of the blocking pool.
    private static let pagesPerJob = 256
    /// Chunks that one slice marks: each costs a search in every held snapshot.
    private static let chunksPerMarkSlice: UInt64 = 8192
    /// Times a mark is applied again because cuts fell into it.
    private static let markAttemptsMax = 64

    /// Declares ranges, rounded outward to blocks, as changed: for every query until now, and for
    /// every query until a snapshot that is held now. All of them or none.
    package func mark(_ ranges: [ByteRange], blocking: BlockingPool) async -> ChangesRefusal? {
        let size = await loop.mailbox.run { [device] loop in device.get(on: loop).size }
        guard let size else { return .busy }
        var rounded: [ByteRange] = []
        for range in ranges {
            guard range.end <= size else { return .beyondEnd(size: size) }
            let outer = range.roundedOutward(to: blockByteCount)
            rounded.append(
                ByteRange(offset: outer.offset, length: min(outer.end, size) - outer.offset))
        }
        for range in rounded {
            if let refusal = await reservePages(of: range, blocking) { return refusal }
        }
        if let refusal = await checkMark(rounded) { return refusal }
        for _ in 0..<Self.markAttemptsMax {
            switch await apply(rounded) {
            case .success(let isWhole): if isWhole { return nil }
            case .failure(let refusal): return refusal
            }
        }
        return .busy
    }

    /// Makes the pages resident that the range needs.
    private func reservePages(
        of range: ByteRange, _ blocking: BlockingPool
    ) async -> ChangesRefusal? {
        let device = device
        while true {
            let pages = await loop.mailbox.run { loop in
                device.get(on: loop).engine.unreservedPages(of: range, countMax: Self.pagesPerJob)
            }
            guard let pages else { return .busy }
            guard !pages.isEmpty else { return nil }
            let memory = await loop.mailbox.run { loop in device.get(on: loop).mapMemory }
            guard let memory else { return .busy }
            let isReserved = await blocking.run { pages.allSatisfy { memory.reserve(page: $0) } }
            guard let isReserved else { return .busy }
            guard isReserved else { return .noMemory }
            let told: Void? = await loop.mailbox.run { loop in
                let device = device.get(on: loop)
                for page in pages { device.engine.mapPageReserved(page) }
                device.engineTouched()
            }
            guard told != nil else { return .busy }
        }
    }

    private func checkMark(_ ranges: [ByteRange]) async -> ChangesRefusal? {
        let device = device
        let chunkCount = ranges.reduce(UInt64(0)) { $0 + UInt64(chunks(touching: $1).count) }
        let outcome = await loop.mailbox.run { loop -> Result<Void, ChangesRefusal> in
            let engine = device.get(on: loop).engine
            guard !engine.isTrackingLost else { return .failure(.historyUnknown) }
            guard engine.hasRoomForMarks(chunkCount: chunkCount) else {
                return .failure(.tooManyForSnapshot)
            }
            return .success(())
        }
        switch outcome {
        case .success: return nil
        case .failure(let refusal): return refusal
        case nil: return .busy
        }
    }

    /// Marks all of it; false when a cut was made meanwhile.
    private func apply(_ ranges: [ByteRange]) async -> Result<Bool, ChangesRefusal> {
        var epochs: Set<Epoch> = []
        for range in ranges {
            var position = range.offset
            while position < range.end {
                let slice = await markSlice(
                    ByteRange(offset: position, length: range.end - position))
                switch slice {
                case .success(let (epoch, end)):
                    epochs.insert(epoch)
                    position = end
                case .failure(let refusal): return .failure(refusal)
                }
            }
        }
        return .success(epochs.count == 1)
    }

    private func markSlice(
        _ range: ByteRange
    ) async -> Result<(Epoch, UInt64), ChangesRefusal> {
        let device = device
        return await loop.mailbox.run { loop -> Result<(Epoch, UInt64), ChangesRefusal> in
            let device = device.get(on: loop)
            let engine = device.engine
            guard !engine.isTrackingLost else { return .failure(.historyUnknown) }
            guard range.end <= device.size else { return .failure(.beyondEnd(size: device.size)) }
            let chunkCount = max(1, Self.chunksPerMarkSlice / UInt64(1 + engine.heldCount * 16))
            let sliceEnd = (range.offset / chunkByteCount + chunkCount) * chunkByteCount
            let end = min(range.end, sliceEnd)
            let slice = ByteRange(offset: range.offset, length: end - range.offset)
            // A new history began since the pages were reserved: its map has others.
            guard engine.unreservedPages(of: slice, countMax: 1).isEmpty else {
                return .failure(.busy)
            }
            engine.changesDeclared(in: slice)
            device.engineTouched()
            return .success((engine.epoch, end))
        } ?? .failure(.busy)
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
            device.engine.newestBaseChanged(to: base)
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
        for range in ranges {
            if let last = page.ranges.last, last.end == range.offset {
                page.ranges[page.ranges.count - 1] = ByteRange(
                    offset: last.offset, length: last.length + range.length)
                continue
            }
            guard page.ranges.count < rangeCountMax else {
                page.nextOffset = range.offset
                isFull = true
                return
            }
            page.ranges.append(range)
        }
    }

    /// The answer goes on at `offset`, although it has room.
    mutating func endedEarly(at offset: UInt64) { page.nextOffset = offset }

    func finished() -> ChangesPage { page }
}
