/// Number of a stored block: extent * 1024 + block in the extent. 31 bits, so 8 TiB a device.
@usableFromInline package struct StorageSlot: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt32

    @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    /// The slot `count` blocks behind, of the same extent.
    @inlinable package func advanced(by count: Int) -> StorageSlot {
        StorageSlot(rawValue + UInt32(count))
    }
}

/// Index of a block buffer in the pool of its loop.
@usableFromInline package struct BufferIndex: Hashable, Sendable, BitwiseCopyable {
    @usableFromInline package let rawValue: UInt32

    @inlinable package init(_ rawValue: UInt32) { self.rawValue = rawValue }

    /// No buffer: the end of a list.
    @inlinable package static var none: BufferIndex { BufferIndex(.max) }
}

/// Where the bytes of a preserved block are: on storage, or still in memory. One word.
package struct BlockPlace: Equatable, Sendable {
    package let rawValue: UInt32

    package init(rawValue: UInt32) { self.rawValue = rawValue }

    package init(stored slot: StorageSlot) {
        precondition(slot.rawValue < 1 << 31, "a storage slot has 31 bits")
        rawValue = slot.rawValue
    }

    package init(inMemory buffer: BufferIndex) {
        precondition(buffer.rawValue < 1 << 31, "a buffer index has 31 bits")
        rawValue = buffer.rawValue | 1 << 31
    }

    package var isInMemory: Bool { rawValue >> 31 != 0 }

    /// The buffer; only when in memory.
    package var buffer: BufferIndex {
        assert(isInMemory, "the block is stored")
        return BufferIndex(rawValue & 0x7FFF_FFFF)
    }

    /// The slot; only when not in memory.
    package var slot: StorageSlot {
        assert(!isInMemory, "the block is in memory")
        return StorageSlot(rawValue)
    }
}
