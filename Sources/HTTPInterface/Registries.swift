package import BlockDeviceManagement
package import DataPlane
package import DeviceManagement
package import ServiceState
package import SnapshotManagement

/// What the routes of the control socket lead to.
package struct Registries: Sendable {
    /// The attached devices.
    package let devices: DeviceRegistry
    /// The snapshots, prepared and held.
    package let snapshots: SnapshotRegistry
    /// The cuts that are remembered under a name.
    let checkpoints: CheckpointRegistry
    /// The local block devices.
    package let blocks: BlockRegistry
    /// What happened.
    package let events: EventLog
    /// The thread that makes cuts.
    package let cuts: CutThread
    /// The copies that programs told of.
    package let copies: CopyRegistry

    package init(
        devices: DeviceRegistry, snapshots: SnapshotRegistry, checkpoints: CheckpointRegistry,
        blocks: BlockRegistry, events: EventLog, cuts: CutThread, copies: CopyRegistry
    ) {
        self.devices = devices
        self.snapshots = snapshots
        self.checkpoints = checkpoints
        self.blocks = blocks
        self.events = events
        self.cuts = cuts
        self.copies = copies
    }

    /// Answers questions about changes.
    package var changes: ChangeQueries {
        ChangeQueries(devices: devices, snapshots: snapshots, checkpoints: checkpoints)
    }
}
