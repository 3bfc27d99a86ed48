package import BlockModel
package import Devices
internal import Generations
package import RingIO
internal import SnapshotCore

// Marks by hand: ranges are declared as changed.
//
// Invariants
// - A mark is applied wholly or not at all: what can fail (pages of the map, room in the held
//   snapshots) is done before its first block is marked, and one that a cut fell into is applied
//   once more, so that it counts wholly for that cut's queries too.
// - It is applied in slices of at most a millisecond on the loop, like questions.

extension AttachedDevice {
    /// Pages of the map that are made resident in one job of the blocking pool.
    private static let pagesPerJob = 256
    /// Chunks that one slice marks: each costs a search in every held snapshot.
    private static let chunksPerSlice: UInt64 = 8192
    /// Times a mark is applied again because cuts fell into it.
    private static let attemptsMax = 64

    /// Declares ranges, rounded outward to blocks, as changed: for every query until now, and for
    /// every query until a snapshot that is held now. All of them or none.
    package func mark(_ ranges: [ByteRange], blocking: BlockingPool) async -> ChangesRefusal? {
        let size = await loop.mailbox.run { [device] loop in device.get(on: loop).size }
        guard let size else { return .busy }
        var rounded: [ByteRange] = []
        for range in ranges {
            guard range.end <= size else { return .beyondEnd(size: size) }
            let start = range.offset / blockByteCount * blockByteCount
            let end = (range.end - 1) / blockByteCount * blockByteCount + blockByteCount
            rounded.append(ByteRange(offset: start, length: min(end, size) - start))
        }
        if let refusal = await reservePages(of: rounded, blocking) { return refusal }
        if let refusal = await checkMark(rounded) { return refusal }
        for _ in 0..<Self.attemptsMax {
            switch await apply(rounded) {
            case .success(let isWhole): if isWhole { return nil }
            case .failure(let refusal): return refusal
            }
        }
        return .busy
    }

    /// Makes the pages resident that the ranges need.
    private func reservePages(
        of ranges: [ByteRange], _ blocking: BlockingPool
    ) async -> ChangesRefusal? {
        let device = device
        while true {
            let wanted = await loop.mailbox.run { loop -> ([UInt64], ChangeMapMemory, Generation) in
                let device = device.get(on: loop)
                var pages: Set<UInt64> = []
                for range in ranges where pages.count < Self.pagesPerJob {
                    pages.formUnion(
                        device.engine.unreservedPages(of: range, countMax: Self.pagesPerJob))
                }
                return (pages.sorted(), device.running.memory, device.generation)
            }
            guard let (pages, memory, generation) = wanted else { return .busy }
            guard !pages.isEmpty else { return nil }
            let isReserved = await blocking.run(.pages) {
                pages.allSatisfy { memory.reserve(page: $0) }
            }
            guard let isReserved else { return .busy }
            guard isReserved else { return .noMemory }
            let done: Void? = await loop.mailbox.run { loop in
                let device = device.get(on: loop)
                // Pages of a map that is not the device's any more are of no use.
                guard device.running.memory === memory, device.generation == generation else {
                    return
                }
                for page in pages { device.engine.mapPageReserved(page) }
                device.engineTouched()
            }
            guard done != nil else { return .busy }
        }
    }

    private func checkMark(_ ranges: [ByteRange]) async -> ChangesRefusal? {
        let device = device
        let chunkCount = ranges.reduce(UInt64(0)) { $0 + UInt64(chunks(touching: $1).count) }
        let outcome = await loop.mailbox.run { loop -> Result<Void, ChangesRefusal> in
            let engine = device.get(on: loop).engine
            guard !engine.isTrackingLost else { return .failure(.generationUnknown) }
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
        let device = device
        var cursor = MarkCursor(ranges)
        var epochs: Set<Epoch> = []
        while !cursor.isDone {
            let start = cursor
            let outcome = await loop.mailbox.run { loop in
                device.get(on: loop).markSlice(from: start, chunkCount: Self.chunksPerSlice)
            }
            switch outcome {
            case .success(let (epoch, next)):
                epochs.insert(epoch)
                cursor = next
            case .failure(let refusal): return .failure(refusal)
            case nil: return .failure(.busy)
            }
        }
        return .success(epochs.count == 1)
    }
}
