package import RingIO

/// How much of what is bounded a loop has handed out.
package struct LoopUsage: Sendable {
    /// Payload buffers of requests.
    package let bufferByteCount: UInt64
    package let bufferCapacity: UInt64
    /// Preserved data that is not stored yet.
    package let preservedByteCount: UInt64
    package let preservedCapacity: UInt64
    package let requestCount: UInt64
    package let requestCapacity: UInt64
    /// How long calls held the loop; nil unless that is measured.
    package let holds: HoldMeter?

    /// Asks a loop; nil when it has stopped.
    package static func of(_ loop: LoopThread) async -> LoopUsage? {
        await loop.mailbox.run { loop in
            let preservation = LoopPreservation.of(loop).buffers
            return LoopUsage(
                bufferByteCount: UInt64(loop.buffers.capacityBytes - loop.buffers.freeBytes),
                bufferCapacity: UInt64(loop.buffers.capacityBytes),
                preservedByteCount: UInt64(preservation.capacity - preservation.freeCount) * 4096,
                preservedCapacity: UInt64(preservation.capacity) * 4096,
                requestCount: UInt64(loop.requests.leasedCount),
                requestCapacity: UInt64(loop.requests.capacity), holds: loop.holds)
        }
    }
}
