internal import BlockModel
package import ControlDocuments
internal import DataPlane
internal import ServiceState

// Pictures of what changed, for people who look.

extension ChangeQueries {
    /// How the changes of a device are spread over it.
    package func summary(
        of text: String, cellCount: Int, since: String?
    ) async throws -> SummaryDocument {
        let name = try Self.deviceName(text)
        return try await devices.pinning([name]) { devices in
            var query = SummaryQuery(cellCountMax: cellCount, since: nil, cuts: [])
            var sinceName = CheckpointRequest.generationName
            if let since, since != sinceName {
                let found = try checkpoints.base(of: name, named: since)
                query.since = found.base
                sinceName = found.name.text
            }
            let known = cuts(of: name)
            query.cuts = known.prefix(SummaryDocument.checkpointsMax).map(\.base)
            switch await devices[0].changeSummary(query) {
            case .failure(let refusal):
                throw Self.refusal(refusal, name, ChangesRequest(device: text, since: since))
            case .success(let answer):
                return document(
                    answer, of: name, known,
                    since: .init(name: sinceName, epoch: query.since?.epoch.rawValue ?? 0))
            }
        }
    }

    /// A checkpoint's part of one device.
    struct DeviceCut {
        let checkpoint: Checkpoint
        let base: TrackingBase
    }

    /// The cuts of a device that are remembered, the newest first; those of former generations too.
    func cuts(of device: ObjectName) -> [DeviceCut] {
        checkpoints.store.all.reversed().compactMap { checkpoint in
            checkpoint.base(of: device).map { DeviceCut(checkpoint: checkpoint, base: $0) }
        }
    }

    private func document(
        _ answer: SummaryAnswer, of name: ObjectName, _ known: [DeviceCut],
        since: ChangesDocument.Cut
    ) -> SummaryDocument {
        // By epoch, so that the one before a change is found by halving.
        let named = known.filter { $0.base.generation == answer.generation }
            .sorted { $0.base.epoch.rawValue < $1.base.epoch.rawValue }
        func lastBefore(_ epoch: UInt32) -> String? {
            var (low, high) = (0, named.count)
            while low < high {
                let middle = (low + high) / 2
                if named[middle].base.epoch.rawValue < epoch {
                    low = middle + 1
                } else {
                    high = middle
                }
            }
            return low > 0 ? named[low - 1].checkpoint.name.text : nil
        }
        let counted = answer.cuts.compactMap { cut -> SummaryDocument.Checkpoint? in
            guard let found = known.first(where: { $0.base == cut.base }) else { return nil }
            return SummaryDocument.Checkpoint(
                name: found.checkpoint.name.text, createdAt: found.checkpoint.createdAt,
                epoch: cut.base.epoch.rawValue, changedBytes: cut.changedByteCount)
        }
        return SummaryDocument(
            device: name.text, generation: answer.generation.description, epoch: answer.epoch,
            since: since, size: answer.size, cellSize: answer.cellByteCount,
            changedBytes: answer.changedByteCount, checkpoints: counted,
            cells: answer.cells.map { cell in
                SummaryDocument.Cell(
                    changedBlocks: cell.changedBlockCount, epoch: cell.epoch,
                    last: lastBefore(cell.epoch))
            })
    }
}
