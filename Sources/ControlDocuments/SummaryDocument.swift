package import FoundationEssentials

// How the changes of a device are spread over it: `GET /v1/devices/{name}/changes/summary`.

/// A picture of what changed on a device.
package struct SummaryDocument: Codable, Equatable, Sendable {
    package var device: String
    package var generation: String
    /// The epoch that changes are marked in now.
    package var epoch: UInt32
    /// The cut that `changed_bytes` and `changed_blocks` count from.
    package var since: ChangesDocument.Cut
    /// Bytes of the device.
    package var size: UInt64
    /// Bytes that each cell stands for; the last one may stand for less.
    package var cellSize: UInt64
    package var changedBytes: UInt64
    /// The newest checkpoints that queries can name, the newest first.
    package var checkpoints: [Checkpoint]
    package var cells: [Cell]

    /// A checkpoint, and what an increment from it would move now.
    package struct Checkpoint: Codable, Equatable, Sendable {
        package var name: String
        package var createdAt: Date
        package var epoch: UInt32
        package var changedBytes: UInt64

        package init(
            name: String, createdAt: Date, epoch: UInt32, changedBytes: UInt64
        ) {
            self.name = name
            self.createdAt = createdAt
            self.epoch = epoch
            self.changedBytes = changedBytes
        }
    }

    /// A part of the device.
    package struct Cell: Codable, Equatable, Sendable {
        /// Blocks of 4 KiB that changed since the cut.
        package var changedBlocks: UInt64
        /// Epoch of its newest change; 0 when there was none.
        package var epoch: UInt32
        /// The newest checkpoint before its newest change; null when there was none of either.
        @OrNull package var last: String?

        package init(
            changedBlocks: UInt64, epoch: UInt32, last: String?
        ) {
            self.changedBlocks = changedBlocks
            self.epoch = epoch
            self.last = last
        }
    }

    /// Fewest and most cells, and how many there are unless it is said.
    package static let cellCounts = 1...4096
    package static let cellCountStandard = 1024
    /// Most checkpoints that changed bytes are reported for.
    package static let checkpointsMax = 32

    package init(
        device: String, generation: String, epoch: UInt32, since: ChangesDocument.Cut, size: UInt64,
        cellSize: UInt64, changedBytes: UInt64, checkpoints: [Checkpoint], cells: [Cell]
    ) {
        self.device = device
        self.generation = generation
        self.epoch = epoch
        self.since = since
        self.size = size
        self.cellSize = cellSize
        self.changedBytes = changedBytes
        self.checkpoints = checkpoints
        self.cells = cells
    }
}
