/// How requests reach an origin. One way per origin, never mixed.
package enum AccessMode: String, Sendable {
    /// O_DIRECT through the ring.
    case direct
    /// The page cache, through the ring.
    case buffered
    /// Plain calls on the loop: tmpfs, where nothing blocks.
    case inline
}

/// What was found out about an origin when it was attached.
package struct OriginFacts: Sendable {
    /// Absolute path with symbolic links resolved.
    package var path: String
    package var isBlockDevice: Bool
    package var isReadOnly: Bool
    /// Bytes.
    package var size: UInt64
    /// Logical sector size in bytes: 512 to 4096.
    package var sectorBytes: UInt32
    package var accessMode: AccessMode
    /// Offsets and lengths that reach the origin are multiples of this.
    package var offsetAlignment: UInt32
    package var isRotational: Bool
}

/// What a device has done since it was attached.
package struct DeviceCounters: Sendable, Equatable {
    package var reads: UInt64 = 0
    package var writes: UInt64 = 0
    package var readBytes: UInt64 = 0
    package var writtenBytes: UInt64 = 0
    package var flushes: UInt64 = 0
    package var discards: UInt64 = 0
    package var zeroes: UInt64 = 0
    package var failures: UInt64 = 0
    /// Blocks marked as changed, counted with every request that marks them.
    package var markedBlocks: UInt64 = 0
    /// Blocks of old data read in order to preserve them.
    package var copiedBlocks: UInt64 = 0
    /// The same in bytes: the last block of a device may be shorter.
    package var copiedBytes: UInt64 = 0
    /// Writes that waited for a cut, a copy or memory.
    package var parkedWrites: UInt64 = 0

    package init() {}
}
