import CLiveTracking
import Glibc
import TestSupport

/// The pinned maps of a service, as another program of the machine reaches them.
struct PinnedTable {
    /// Counters of doubt in the header of a disk's marks.
    enum Counter: Sendable {
        case passthrough, discardChain, flightsFull, flightTwice

        var word: Int {
            switch self {
            case .passthrough: CLT_WORD_PASSTHROUGH
            case .discardChain: CLT_WORD_CHAIN
            case .flightsFull: CLT_WORD_FULL
            case .flightTwice: CLT_WORD_TWICE
            }
        }
    }

    let directory: String

    init(_ directory: String) { self.directory = directory }

    private func open(_ name: String) throws -> Int32 {
        let descriptor = clt_open_pinned("\(directory)/\(name)")
        guard descriptor >= 0 else { throw TestFailure("\(name): \(descriptor)") }
        return descriptor
    }

    /// Takes a disk's marks out of the programs' table.
    func remove(disk: UInt64) throws {
        let devices = try open("devices")
        defer { close(devices) }
        for probe in 0..<UInt64(CLT_PROBE_COUNT) {
            let slot = UInt32((disk + probe) % UInt64(CLT_SLOT_COUNT))
            var id: UInt32 = 0
            if clt_slot_bitmap_id(devices, slot, &id) == 0, id != 0 {
                let outcome = clt_slot_remove(devices, slot)
                guard outcome == 0 else { throw TestFailure("remove: \(outcome)") }
            }
        }
    }

    /// Moves a disk to the last slot that it may have, as if other disks had the ones before; all of them but
    /// the last are left free.
    func moveToLastSlot(disk: UInt64) throws {
        let descriptors = try ["devices", "slots", "disk-\(disk)"].map { try open($0) }
        defer { for descriptor in descriptors { close(descriptor) } }
        let count = Int(CLT_SLOT_COUNT)
        let memory = mmap(
            nil, count * MemoryLayout<clt_slot>.size, PROT_READ | PROT_WRITE, MAP_SHARED,
            descriptors[1], 0)
        guard let memory, memory != MAP_FAILED else { throw TestFailure("mmap: \(errno)") }
        defer { munmap(memory, count * MemoryLayout<clt_slot>.size) }
        let slots = memory.assumingMemoryBound(to: clt_slot.self)
        let first = Int(disk % UInt64(count))
        guard slots[first].disk == disk else { throw TestFailure("the disk has another slot") }
        let last = (first + Int(CLT_PROBE_COUNT) - 1) % count
        slots[last].shape = slots[first].shape
        let outcome = clt_slot_put(descriptors[0], UInt32(last), descriptors[2])
        guard outcome == 0 else { throw TestFailure("put: \(outcome)") }
        slots[last].disk = disk
        // Some other disk, of which nobody knows.
        slots[(last + count - 1) % count].disk = disk &+ 1_000_000_007
        slots[first].disk = 0
    }

    /// Counts one in the header of a disk's marks, as the programs would.
    func count(_ counter: Counter, ofDisk disk: UInt64) throws {
        let bitmap = try open("disk-\(disk)")
        defer { close(bitmap) }
        let memory = mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, bitmap, 0)
        guard let memory, memory != MAP_FAILED else { throw TestFailure("mmap: \(errno)") }
        defer { munmap(memory, 4096) }
        let words = memory.assumingMemoryBound(to: UInt64.self)
        clt_store_word(words + counter.word, 1)
    }
}
