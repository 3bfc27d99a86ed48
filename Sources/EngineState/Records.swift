public import BlockModel
public import CopyOnWrite

/// Old data of neighbouring blocks of one chunk on its way to memory.
@usableFromInline package struct CopyRecord {
    @usableFromInline package var isUsed = false
    /// Nobody needs the data any more: it is dropped on arrival.
    @usableFromInline package var isOrphaned = false
    @usableFromInline package var attempts: UInt8 = 0
    @usableFromInline package var first: UInt8 = 0
    @usableFromInline package var count: UInt8 = 0
    @usableFromInline package var layer = LayerIndex(0)
    @usableFromInline package var record: UInt32 = 0
    @usableFromInline package var chunk: UInt64 = 0
    @usableFromInline package var waiters = RequestList()
    /// The next free one.
    package var next: CopyIndex?

    @inlinable package init() {}

    /// The blocks of the chunk.
    @inlinable package var mask: UInt16 {
        UInt16(truncatingIfNeeded: (1 << UInt32(count)) - 1) << UInt16(first)
    }
}

/// Block buffers on their way to neighbouring slots.
@usableFromInline package struct BatchRecord {
    @usableFromInline package var isUsed = false
    @usableFromInline package var attempts: UInt8 = 0
    @usableFromInline package var purpose = StoragePurpose.preserving
    @usableFromInline package var count: UInt16 = 0
    @usableFromInline package var firstSlot = StorageSlot(0)
    /// The image write it belongs to, for overlays.
    @usableFromInline package var request = RequestIndex.none
    /// The next free one.
    package var next: BatchIndex?

    @inlinable package init() {}
}

/// A snapshot of this device.
@usableFromInline package struct SnapshotRecord {
    /// How it stands.
    @usableFromInline package enum State: UInt8 { case free, prepared, held, corrupted, destroying }

    @usableFromInline package var state = State.free
    /// The layer with its preserved blocks; nil when they are lost or being merged.
    @usableFromInline package var layer: LayerIndex?
    /// The layer with what was written through its writable image.
    @usableFromInline package var overlay: LayerIndex?
    @usableFromInline package var isOverlayLost = false
    @usableFromInline package var account: UInt16 = 0
    @usableFromInline package var policy = OverflowPolicy.Kind.break
    @usableFromInline package var limitNanoseconds: UInt64 = 0
    @usableFromInline package var cutEpoch: UInt32 = 0
    /// The epoch that ended at the newest cut before its own that was usable as a base.
    @usableFromInline package var baseBefore: UInt32 = 0
    /// Counts generations of the device; queries across two are refused.
    @usableFromInline package var generation: UInt32 = 0
    @usableFromInline package var size: UInt64 = 0
    /// Image requests not yet finished.
    @usableFromInline package var requestCount: UInt32 = 0
    /// Image writes in order of arrival.
    @usableFromInline package var writers = RequestList()

    @inlinable package init() {}
}

/// What a layer slot is for.
@usableFromInline package struct LayerUse {
    /// What a layer is for.
    @usableFromInline package enum Role: UInt8 {
        case free, prepared, live, merging, freeing, overlay
    }

    @usableFromInline package var role = Role.free
    /// The snapshot that the layer belongs to; meaningless while the slot is free.
    @usableFromInline package var snapshot = SnapshotIndex(0)
    /// Next record to merge or free.
    @usableFromInline package var cursor: UInt32 = 0
    /// Copies in flight for it; those nobody needs any more are not counted.
    @usableFromInline package var copyCount: UInt32 = 0

    @inlinable package init() {}

    /// A slot that begins to be used.
    package init(role: Role, snapshot: SnapshotIndex) {
        self.role = role
        self.snapshot = snapshot
    }
}

extension UnsafeMutablePointer<CopyRecord> {
    /// The record of a copy.
    @inlinable package subscript(index: CopyIndex) -> CopyRecord {
        unsafeAddress { UnsafePointer(self + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { self + Int(index.rawValue) }
    }
}

extension UnsafeMutablePointer<BatchRecord> {
    /// The record of a storage write.
    @inlinable package subscript(index: BatchIndex) -> BatchRecord {
        unsafeAddress { UnsafePointer(self + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { self + Int(index.rawValue) }
    }
}

extension UnsafeMutablePointer<SnapshotRecord> {
    /// The record of a snapshot.
    @inlinable package subscript(index: SnapshotIndex) -> SnapshotRecord {
        unsafeAddress { UnsafePointer(self + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { self + Int(index.rawValue) }
    }

    /// Its address.
    @inlinable package func pointer(to index: SnapshotIndex) -> UnsafeMutablePointer<SnapshotRecord>
    {
        self + Int(index.rawValue)
    }
}

extension UnsafeMutablePointer<LayerUse> {
    /// What a layer is used for.
    @inlinable package subscript(index: LayerIndex) -> LayerUse {
        unsafeAddress { UnsafePointer(self + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { self + Int(index.rawValue) }
    }
}

extension UnsafeMutablePointer<DifferenceLayer> {
    /// The layer itself.
    @inlinable package subscript(index: LayerIndex) -> DifferenceLayer {
        unsafeAddress { UnsafePointer(self + Int(index.rawValue)) }
        nonmutating unsafeMutableAddress { self + Int(index.rawValue) }
    }

    /// Its address.
    @inlinable package func pointer(to index: LayerIndex) -> UnsafeMutablePointer<DifferenceLayer> {
        self + Int(index.rawValue)
    }
}
