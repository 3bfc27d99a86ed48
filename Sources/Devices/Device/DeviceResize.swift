internal import BlockModel
package import Generations
package import Origins

/// Why an origin's size cannot be taken over.
package enum ResizeObstacle: Error, Sendable {
    /// It cannot be read: an errno value.
    case unreadable(Int32)
    /// No multiple of `multiple` bytes, or nothing at all, or more than a device may have.
    case unsuitable(size: UInt64, multiple: UInt64)
    /// The change map cannot grow: an errno value.
    case noRoom(Int32)
}

/// A size that the origin was found to have, and what a device needs to take it over.
package struct DeviceResize: Sendable {
    /// Larger than that of any look before.
    package let number: UInt64
    package let size: UInt64
    /// Room for the map of a device that grew beyond its former one.
    package let memory: ChangeMapMemory?

    /// Looks at the origin, of which the device has `former` bytes. Blocks.
    package static func find(
        _ origin: OpenedOrigin, former: UInt64, number: UInt64, memory: ChangeMapMemory
    ) throws(ResizeObstacle) -> DeviceResize {
        let now: UInt64
        switch origin.currentSize() {
        case .success(let size): now = size
        case .failure(let failure): throw .unreadable(failure.errnoValue)
        }
        guard now != former else {
            return DeviceResize(number: number, size: now, memory: nil)
        }
        let multiple = UInt64(max(origin.facts.sectorBytes, origin.facts.offsetAlignment))
        let chunkCount = MapLayout.chunkCount(size: now)
        guard now > 0, now % multiple == 0, chunkCount <= MapLayout.chunkCountMax else {
            throw .unsuitable(size: now, multiple: multiple)
        }
        guard chunkCount > memory.chunkCount else {
            return DeviceResize(number: number, size: now, memory: nil)
        }
        // The pages that are reserved are in the file already: the new mapping only meets them
        // at other addresses.
        switch ChangeMapMemory.map(memory.file, chunkCount: chunkCount) {
        case .success(let larger): return DeviceResize(number: number, size: now, memory: larger)
        case .failure(let fault): throw .noRoom(fault.errnoValue)
        }
    }
}
