package import BlockModel
package import ChangeTracking
package import Devices
internal import RingIO
internal import SnapshotCore

// A picture of a device's changes: one pass over its change map, in slices of a fraction of a
// millisecond on the loop, one message each, so that requests pass in between.
//
// Invariants
// - All slices belong to one generation; one that ends meanwhile ends the question.
// - A change that comes meanwhile is counted or not; one that was there before is counted.

/// What a picture of changes is asked for.
package struct SummaryQuery: Sendable {
    /// Most cells.
    package var cellCountMax: Int
    /// The cut that cells are about; nil: the start of the generation.
    package var since: TrackingBase?
    /// Cuts that changed bytes are counted since; those of another generation are left out.
    package var cuts: [TrackingBase]
    /// Of a live device the marks are taken first, so that what was written before is counted.
    package var takesMarks: Bool

    package init(
        cellCountMax: Int, since: TrackingBase?, cuts: [TrackingBase], takesMarks: Bool = true
    ) {
        self.cellCountMax = cellCountMax
        self.since = since
        self.cuts = cuts
        self.takesMarks = takesMarks
    }
}

/// A picture of changes.
package struct SummaryAnswer: Sendable {
    package var generation: Generation
    /// The epoch that changes are marked in now.
    package var epoch: UInt32
    /// Bytes of the device.
    package var size: UInt64
    /// Bytes that a cell stands for; the last one may stand for less.
    package var cellByteCount: UInt64
    package var cells: [ChangeSummary.Cell]
    /// Bytes changed since the cut that cells are about.
    package var changedByteCount: UInt64
    /// Bytes changed since each cut that was asked for and is of this generation.
    package var cuts: [(base: TrackingBase, changedByteCount: UInt64)]
}

/// A summary under way: made by the asker, filled on the loop.
private final class SummaryBuffer: @unchecked Sendable {
    // SAFETY: the loop writes it while the asker waits for the loop's answer, which orders the two.
    var summary: ChangeSummary

    init(_ summary: consuming ChangeSummary) { self.summary = summary }
}

extension AttachedDevice {
    /// Work of one slice, in equal entries of the map: less than 0.1 ms.
    private static let summaryBudget = 131_072

    /// Where a summary begins.
    private struct SummaryFrame {
        let generation: Generation
        let epoch: UInt32
        let size: UInt64
        let firstSize: UInt64
    }

    /// How the changes of the device are spread over it.
    package func changeSummary(
        _ query: SummaryQuery
    ) async -> Result<SummaryAnswer, ChangesRefusal> {
        if query.takesMarks {
            let marks = ChangesQuery(since: .generation, until: nil)
            if let refusal = await takeMarks(for: marks) { return .failure(refusal) }
        }
        let device = device
        let found = await loop.mailbox.run { loop -> SummaryFrame? in
            let device = device.get(on: loop)
            guard !device.engine.isTrackingLost else { return nil }
            return SummaryFrame(
                generation: device.generation, epoch: device.engine.epoch.rawValue,
                size: device.size, firstSize: device.running.header.firstSize)
        }
        guard let found else { return .failure(.busy) }
        guard let frame = found, query.since.map({ $0.generation == frame.generation }) ?? true
        else { return .failure(.generationUnknown) }
        let bases = query.cuts.filter {
            $0.generation == frame.generation && $0.epoch.rawValue < frame.epoch
        }
        var cuts = bases.map { SummaryCut(epoch: $0.epoch.rawValue, byteCount: $0.size) }
        cuts.append(
            query.since.map { SummaryCut(epoch: $0.epoch.rawValue, byteCount: $0.size) }
                ?? SummaryCut(epoch: 0, byteCount: frame.firstSize))
        let grid = ChangeSummary.Grid(byteCount: frame.size, cellCountMax: query.cellCountMax)
        let buffer = SummaryBuffer(
            ChangeSummary(grid: grid, cuts: cuts, subject: cuts.count - 1))
        if let refusal = await fill(buffer, of: frame.generation) {
            return .failure(refusal)
        }
        return .success(Self.answer(frame, bases, buffer))
    }

    private func fill(
        _ buffer: SummaryBuffer, of generation: Generation
    ) async -> ChangesRefusal? {
        let device = device
        var chunk: UInt64 = 0
        while true {
            let start = chunk
            let step = await loop.mailbox.run { loop -> ChangeMap.SummaryStep? in
                let device = device.get(on: loop)
                guard device.generation == generation else { return nil }
                let step = device.engine.summarizeChanges(
                    into: &buffer.summary, from: start, budget: Self.summaryBudget)
                if step == .damaged { device.mapFoundDamaged() }
                return step
            }
            switch step {
            case .none: return .busy
            case .some(.none): return .generationUnknown
            case .some(.damaged): return .damaged
            case .some(.finished): return nil
            case .some(.goesOn(let next)): chunk = next
            }
        }
    }

    private static func answer(
        _ frame: SummaryFrame, _ bases: [TrackingBase], _ buffer: SummaryBuffer
    ) -> SummaryAnswer {
        // The last block may be shorter than others.
        let bytes = buffer.summary.changedBlockCounts.map {
            min($0 * blockByteCount, frame.size)
        }
        return SummaryAnswer(
            generation: frame.generation, epoch: frame.epoch, size: frame.size,
            cellByteCount: buffer.summary.grid.blocksPerCell * blockByteCount,
            cells: buffer.summary.cellCounts, changedByteCount: bytes[bytes.count - 1],
            cuts: zip(bases, bytes).map { ($0, $1) })
    }
}
