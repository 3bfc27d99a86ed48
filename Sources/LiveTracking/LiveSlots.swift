internal import CLiveTracking
internal import Glibc

// The table in which the programs find the bitmap of a disk: slots with sequence numbers and shapes,
// and beside them a map of bitmaps.
//
//   put:    shape -> bitmap (the kernel waits for running programs) -> sequence number
//   remove: sequence number -> bitmap (the kernel waits for running programs)
//
// Invariants
// - A slot does not change as long as it names a disk. A program that sees the sequence number began
//   after the wait, so it sees the shape and the bitmap that belong to it, on every processor.
// - A disk that gets another bitmap has two slots for a moment; marks go into either.

/// The table of the programs. Changed under the tracker's lock.
final class LiveSlots: @unchecked Sendable {
    // SAFETY: the pointers do not change; every access to what they point to is atomic.
    private let devices: Int32
    private let slots: UnsafeMutablePointer<clt_slot>
    private let variables: UnsafeMutablePointer<clt_variables>

    private static let count = Int(CLT_SLOT_COUNT)
    private static let byteCount = count * MemoryLayout<clt_slot>.size

    /// Maps the table; nil, with errno, when that is refused. The descriptors stay the caller's;
    /// `variables` lie in memory that outlives the table.
    init?(devices: Int32, slots descriptor: Int32, variables: UnsafeMutablePointer<clt_variables>) {
        let memory = mmap(
            nil, Self.byteCount, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let memory, memory != MAP_FAILED else { return nil }
        self.devices = devices
        self.variables = variables
        // SAFETY: the map has `count` values of this type, which the mapping covers.
        slots = memory.bindMemory(to: clt_slot.self, capacity: Self.count)
    }

    deinit { munmap(slots, Self.byteCount) }

    /// Bit n: a disk whose sequence number is n modulo 64 is tracked.
    private var wanted: UInt64 {
        get { clt_load_word(&variables.pointee.wanted) }
        set { clt_store_word(&variables.pointee.wanted, newValue) }
    }

    private func disk(_ slot: Int) -> UInt64 { clt_load_word(&slots[slot].disk) }

    /// Slots in which a disk may be, in the order in which the programs look.
    private static func places(of disk: UInt64) -> [Int] {
        (0..<UInt64(CLT_PROBE_COUNT)).map { Int((disk &+ $0) % UInt64(count)) }
    }

    private func bitmapID(_ slot: Int) -> UInt32 {
        var id: UInt32 = 0
        // Refused: the slot has none.
        return clt_slot_bitmap_id(devices, UInt32(slot), &id) == 0 ? id : 0
    }

    /// The kernel's id of the bitmap that a disk's marks go into; nil when they go nowhere.
    func bitmapID(ofDisk disk: UInt64) -> UInt32? {
        guard wanted >> (disk & 63) & 1 != 0,
            let slot = Self.places(of: disk).first(where: { self.disk($0) == disk })
        else { return nil }
        let id = bitmapID(slot)
        return id == 0 ? nil : id
    }

    /// Has the programs mark a disk in a bitmap from here on. When it returns no program uses a
    /// former one of that disk. Returns 0, -ENOSPC when others have all slots that the disk may
    /// have, or what the kernel refused with, as a negative errno value.
    func put(_ bitmap: LiveBitmap) -> Int32 {
        let disk = bitmap.sequence
        let places = Self.places(of: disk)
        let former = places.filter { self.disk($0) == disk }
        guard let slot = places.first(where: { self.disk($0) == 0 }) else { return -ENOSPC }
        clt_store_word(&slots[slot].shape, bitmap.shape)
        let failure = clt_slot_put(devices, UInt32(slot), bitmap.descriptor)
        guard failure == 0 else { return failure }
        clt_store_word(&slots[slot].disk, disk)
        wanted |= 1 << (disk & 63)
        for slot in former { clear(slot) }
        return 0
    }

    /// Ends the marking of a disk. When it returns no program uses its bitmap.
    func remove(disk: UInt64) { remove { $0 == disk } }

    /// Ends the marking of all disks but these, and frees what a killed service left.
    func keep(_ disks: Set<UInt64>) { remove { !disks.contains($0) } }

    private func remove(where isUnneeded: (UInt64) -> Bool) {
        var mask: UInt64 = 0
        for slot in 0..<Self.count {
            let disk = disk(slot)
            if disk != 0, !isUnneeded(disk) { mask |= 1 << (disk & 63) }
        }
        wanted = mask
        for slot in 0..<Self.count where isUnneeded(disk(slot)) {
            if disk(slot) != 0 || bitmapID(slot) != 0 { clear(slot) }
        }
    }

    private func clear(_ slot: Int) {
        clt_store_word(&slots[slot].disk, 0)
        // Gone already: somebody else took it out.
        _ = clt_slot_remove(devices, UInt32(slot))
    }
}
