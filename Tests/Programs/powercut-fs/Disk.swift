// A disk with a volatile cache, as a simulated power cut sees it.
//
//   current   what readers see: every write, in the order of arrival
//   synced    what survives a power cut: only what an fsync has moved over
//   unsynced  the writes in between, each with its bytes, so that a cut may keep any of them
//
// Both contents are memory files, so holes are kept by the kernel and answered by SEEK_DATA.

import CTestSupport
import Glibc

/// The contents of the one file, and what of it would survive a power cut.
struct Disk {
    /// A change that no fsync has covered.
    private enum Change {
        case write(offset: Int, bytes: [UInt8])
        case zero(offset: Int, length: Int)

        var range: Range<Int> {
            switch self {
            case .write(let offset, let bytes): offset..<offset + bytes.count
            case .zero(let offset, let length): offset..<offset + length
            }
        }
    }

    /// Beyond this the oldest changes become durable by themselves, as in a disk's bounded cache.
    static let unsyncedByteCountMaximum = 256 << 20

    let byteCount: Int
    let current: Int32
    private let synced: Int32
    private var unsynced: [Change] = []
    private(set) var unsyncedByteCount = 0

    init(byteCount: Int) {
        self.byteCount = byteCount
        current = stillpoint_test_memory_file("current")
        synced = stillpoint_test_memory_file("synced")
        precondition(ftruncate(current, off_t(byteCount)) == 0, "no memory for the disk")
        precondition(ftruncate(synced, off_t(byteCount)) == 0, "no memory for the disk")
    }

    /// Changes bytes; they are volatile until `sync`.
    mutating func write(_ bytes: [UInt8], at offset: Int) {
        Self.put(bytes, at: offset, into: current)
        remember(.write(offset: offset, bytes: bytes))
    }

    /// Zeroes a range, as a hole or allocated; volatile until `sync`.
    mutating func zero(_ range: Range<Int>, keepingAllocation: Bool) {
        precondition(stillpoint_test_punch(current, range.lowerBound, range.count) == 0)
        if keepingAllocation {
            precondition(stillpoint_test_allocate(current, range.lowerBound, range.count) == 0)
        }
        remember(.zero(offset: range.lowerBound, length: range.count))
    }

    /// Makes everything written so far survive.
    mutating func sync() {
        for change in unsynced { Self.apply(change, to: synced) }
        unsynced.removeAll(keepingCapacity: true)
        unsyncedByteCount = 0
    }

    /// Cuts the power. Without a seed nothing unsynced survives; with one any of it may, whole or
    /// torn between sectors. Returns how many changes there were and how many survived whole.
    mutating func cutPower(seed: UInt64?) -> (changes: Int, kept: Int) {
        var state = seed ?? 0
        func random(_ bound: UInt64) -> UInt64 {
            // The constants of Knuth's MMIX generator; wrapping is its definition.
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % bound
        }
        var kept = 0
        if seed != nil {
            for change in unsynced {
                switch (random(8), change) {
                case (0...3, _):
                    Self.apply(change, to: synced)
                    kept += 1
                case (4, .write(let offset, let bytes)):
                    let sectors = UInt64(bytes.count / 512)
                    let torn = bytes.prefix(Int(random(sectors + 1)) * 512)
                    Self.put(Array(torn), at: offset, into: synced)
                default: break
                }
            }
        }
        for change in unsynced { Self.copy(change.range, from: synced, to: current) }
        let count = unsynced.count
        unsynced.removeAll()
        unsyncedByteCount = 0
        return (count, kept)
    }

    private mutating func remember(_ change: Change) {
        unsynced.append(change)
        unsyncedByteCount += change.range.count
        if unsyncedByteCount > Self.unsyncedByteCountMaximum {
            let half = unsynced.count / 2 + 1
            for old in unsynced.prefix(half) {
                Self.apply(old, to: synced)
                unsyncedByteCount -= old.range.count
            }
            unsynced.removeFirst(half)
        }
    }

    private static func apply(_ change: Change, to file: Int32) {
        switch change {
        case .write(let offset, let bytes): put(bytes, at: offset, into: file)
        case .zero(let offset, let length):
            precondition(stillpoint_test_punch(file, offset, length) == 0)
        }
    }

    private static func put(_ bytes: [UInt8], at offset: Int, into file: Int32) {
        let count = pwrite(file, bytes, bytes.count, off_t(offset))
        precondition(count == bytes.count, "no memory for the disk")
    }

    private static func copy(_ range: Range<Int>, from source: Int32, to target: Int32) {
        var bytes = [UInt8](repeating: 0, count: min(range.count, 1 << 20))
        var offset = range.lowerBound
        while offset < range.upperBound {
            let count = pread(source, &bytes, min(bytes.count, range.upperBound - offset), offset)
            precondition(count > 0)
            precondition(pwrite(target, bytes, count, off_t(offset)) == count)
            offset += count
        }
    }
}
