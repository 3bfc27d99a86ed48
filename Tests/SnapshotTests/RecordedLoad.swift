// A load on one device whose every write is unique, with an independent record of when each was
// issued and acknowledged.
//
// The device is cut in slots of 48 KiB, so that they cross the borders of chunks; each belongs to
// one connection. At most one write is in flight in a slot. A write covers some sectors of one slot
// and puts device, sector and its number within the slot into each of them. So the slot's contents
// are always those after some number of its writes, and the highest number found tells which.

import Glibc
import Synchronization
import TestSupport

/// Writes to one device over several connections until stopped; see the head of this file.
final class RecordedLoad: Sendable {
    static let slotSectorCount = 96
    private static let depth = 6

    /// One write of a slot.
    private struct Write {
        let sectors: Range<Int>
        let issued: UInt64
        var acknowledged: UInt64?
    }

    let export: String
    let slotCount: Int
    private let salt: UInt64
    private let slots: Mutex<[[Write]]>
    private let isEnough = Atomic<Bool>(false)
    private let threads: Mutex<[Background<Void>]> = Mutex([])

    init(_ harness: SnapshotHarness, export: String, slotCount: Int, connections: Int, seed: UInt64)
        throws
    {
        self.export = export
        self.slotCount = slotCount
        salt = seed
        slots = Mutex(Array(repeating: [], count: slotCount))
        for connection in 0..<connections {
            let client = try harness.client(export)
            let own = Array(stride(from: connection, to: slotCount, by: connections))
            let generator = SeededGenerator(seed: seed &+ UInt64(connection))
            let thread = Background { [self] in
                var generator = generator
                try run(client, slots: own, &generator)
            }
            threads.withLock { $0.append(thread) }
        }
    }

    var byteCount: Int { slotCount * Self.slotSectorCount * 512 }

    /// How many writes were issued until now.
    var writeCount: Int { slots.withLock { $0.reduce(0) { $0 + $1.count } } }

    /// Calls `body` with the sectors of each write issued after a moment.
    func forEachWrite(issuedAfter time: UInt64, _ body: (Range<Int>) -> Void) {
        slots.withLock { slots in
            for (slot, writes) in slots.enumerated() {
                let base = slot * Self.slotSectorCount
                for write in writes where write.issued > time {
                    body(base + write.sectors.lowerBound..<base + write.sectors.upperBound)
                }
            }
        }
    }

    /// Lets what is in flight finish.
    func stop() throws {
        isEnough.store(true, ordering: .relaxed)
        for thread in threads.withLock({ $0 }) { try thread.value() }
    }

    private func run(
        _ client: NBDClient, slots own: [Int], _ generator: inout SeededGenerator
    ) throws {
        var inFlight: [UInt64: Int] = [:]
        while true {
            let isEnough = isEnough.load(ordering: .relaxed)
            while !isEnough && inFlight.count < Self.depth {
                let slot = own.randomElement(using: &generator)!
                guard !inFlight.values.contains(slot) else { continue }
                let first = Int.random(in: 0..<Self.slotSectorCount, using: &generator)
                let longest = min(
                    Self.slotSectorCount - first, Bool.random(using: &generator) ? 8 : 96)
                let sectors = first..<first + Int.random(in: 1...longest, using: &generator)
                let number = slots.withLock { slots in
                    slots[slot].append(Write(sectors: sectors, issued: monotonicNanoseconds()))
                    return slots[slot].count
                }
                let cookie = client.freshCookie()
                inFlight[cookie] = slot
                var bytes: [UInt8] = []
                for sector in sectors { bytes += contents(slot, sector, number) }
                try client.send(
                    NBDRequest(
                        .write, cookie: cookie,
                        offset: UInt64((slot * Self.slotSectorCount + sectors.lowerBound) * 512),
                        length: UInt64(bytes.count), payload: bytes))
            }
            if inFlight.isEmpty { return }
            let chunk = try client.receiveChunk()
            if let error = chunk.error { throw TestFailure("a write failed: \(error)") }
            guard let slot = inFlight.removeValue(forKey: chunk.cookie) else {
                throw TestFailure("a reply to nothing")
            }
            let now = monotonicNanoseconds()
            slots.withLock { $0[slot][$0[slot].count - 1].acknowledged = now }
        }
    }

    private func contents(_ slot: Int, _ sector: Int, _ number: Int) -> [UInt8] {
        var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: number), count: 512)
        bytes.withUnsafeMutableBytes {
            $0.storeBytes(of: UInt64(number), as: UInt64.self)
            let place = UInt64(slot * Self.slotSectorCount + sector)
            $0.storeBytes(of: salt ^ place, toByteOffset: 8, as: UInt64.self)
            $0.storeBytes(of: salt &+ UInt64(number), toByteOffset: 504, as: UInt64.self)
        }
        return bytes
    }

    /// What an image holds that it must not, and lacks: every write acknowledged before `sent` must
    /// be in, every one issued after `returned` out, each wholly. Also counts the slots whose last
    /// write was in flight during the cut.
    func violations(
        in image: [UInt8], sent: UInt64, returned: UInt64
    ) -> (found: [String], undecidedCount: Int) {
        var found: [String] = []
        var undecidedCount = 0
        let record = slots.withLock { $0 }
        for (slot, writes) in record.enumerated() {
            let least = writes.count { ($0.acknowledged ?? .max) < sent }
            let most = writes.count { $0.issued < returned }
            if least < most { undecidedCount += 1 }
            let base = slot * Self.slotSectorCount * 512
            let sectors = (0..<Self.slotSectorCount).map { sector in
                Array(image[(base + sector * 512)..<(base + sector * 512 + 512)])
            }
            let last =
                sectors.map { bytes in bytes.withUnsafeBytes { Int($0.load(as: UInt64.self)) } }
                .max() ?? 0
            guard (least...most).contains(last) else {
                found.append("\(export) slot \(slot): write \(last), not \(least)...\(most)")
                continue
            }
            var expected = Array(repeating: 0, count: Self.slotSectorCount)
            for (index, write) in writes.prefix(last).enumerated() {
                for sector in write.sectors { expected[sector] = index + 1 }
            }
            for (sector, number) in expected.enumerated() {
                let right =
                    number == 0
                    ? [UInt8](repeating: 0, count: 512) : contents(slot, sector, number)
                guard sectors[sector] != right else { continue }
                found.append("\(export) slot \(slot) sector \(sector): not write \(number)")
            }
        }
        return (found, undecidedCount)
    }
}
