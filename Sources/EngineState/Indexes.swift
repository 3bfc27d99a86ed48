/// Index of a snapshot of one device, reused after `snapshotGone`.
@usableFromInline package struct SnapshotIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt16

    @inlinable package init(_ rawValue: UInt16) { self.rawValue = rawValue }
}

/// Index of a layer of one device: the difference layer of a snapshot, or the overlay of its
/// writable image.
@usableFromInline package struct LayerIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt16

    @inlinable package init(_ rawValue: UInt16) { self.rawValue = rawValue }
}

/// Index of a copy in progress: old data of neighbouring blocks of one chunk on its way to memory.
@usableFromInline package struct CopyIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt32

    @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }
}

/// Index of a storage write in progress: block buffers that go to neighbouring slots.
@usableFromInline package struct BatchIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt32

    @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }
}
