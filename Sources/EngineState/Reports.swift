/// What a snapshot of one device uses now.
package struct SnapshotReport: Equatable, Sendable {
    package var isCorrupted = false
    /// Blocks in its layer, zero ones included.
    package var preservedBlockCount: UInt64 = 0
    package var zeroBlockCount: UInt64 = 0
    package var metadataByteCount: UInt64 = 0

    /// Nothing.
    package init() {}
}

/// What an engine did since its start.
package struct EngineCounters: Equatable, Sendable {
    /// Blocks of old data read from the origin for preserving.
    package var copiedBlockCount: UInt64 = 0
    /// Bytes of old data read from the origin for preserving.
    package var copiedByteCount: UInt64 = 0
    /// Bytes of blocks written to difference storage for preserving.
    package var storedByteCount: UInt64 = 0
    /// Blocks found all zero while preserving.
    package var zeroBlockCount: UInt64 = 0
    /// Writers that had to wait for a copy or memory.
    package var delayedRequestCount: UInt64 = 0
    /// Blocks merged into an older layer.
    package var mergedBlockCount: UInt64 = 0

    /// Nothing yet.
    package init() {}
}
