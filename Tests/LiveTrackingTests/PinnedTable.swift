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
