import BlockModel
import CopyOnWrite
import Testing

@Suite struct `Difference layers` {
    /// Blocks come, move and go in random order; a dictionary says where each one is.
    @Test(arguments: [1, 2, 3, 4] as [UInt64])
    func `every block is where it was put`(seed: UInt64) throws {
        var random = Seeded(state: seed)
        var layer = DifferenceLayer(byteCountMax: 1 << 30)
        var places: [UInt64: UInt32] = [:]
        var zeroes: Set<UInt64> = []
        var slot: UInt32 = 0
        for step in 0..<60_000 {
            let block = random.next() % 40_000
            let chunk = block / 16 &* 0x1_0001
            let position = Int(block % 16)
            let known = layer.findOrInsert(chunk, savedEntry: chunk)
            let record = try #require(known)
            #expect(layer.record(record).pointee.savedEntry == chunk)
            let isKnown = places[block] != nil || zeroes.contains(block)
            switch (isKnown, random.next() % 4) {
            case (false, 0):
                layer.preserveZero(1 << UInt16(position), of: record)
                zeroes.insert(block)
            case (false, _):
                slot += UInt32(random.next() % 2)
                let place =
                    random.next() % 3 == 0
                    ? BlockPlace(inMemory: BufferIndex(UInt32(step)))
                    : BlockPlace(stored: StorageSlot(slot))
                slot += 1
                layer.preserve(position, of: record, at: place)
                places[block] = place.rawValue
            case (true, 0):
                layer.forget(position, of: record)
                places[block] = nil
                zeroes.remove(block)
            case (true, _):
                if places[block] != nil {
                    slot += 1
                    layer.blockMoved(
                        position, of: record, to: BlockPlace(stored: StorageSlot(slot)))
                    places[block] = slot
                }
            }
            if step % 97 == 0 { check(layer, chunk, block / 16 * 16, places, zeroes) }
        }
        for chunk in 0..<UInt64(2500) {
            check(layer, chunk &* 0x1_0001, chunk * 16, places, zeroes)
        }
        #expect(layer.preservedCount == UInt64(places.count + zeroes.count))
        #expect(layer.zeroCount == UInt64(zeroes.count))
        while !layer.deallocate(slabs: 2) {}
    }

    private func check(
        _ layer: DifferenceLayer, _ chunk: UInt64, _ first: UInt64, _ places: [UInt64: UInt32],
        _ zeroes: Set<UInt64>
    ) {
        let record = layer.find(chunk)
        for position in 0..<UInt64(16) {
            let bit: UInt16 = 1 << UInt16(position)
            let known = record.map { layer.record($0).pointee }
            #expect(((known?.zero ?? 0) & bit != 0) == zeroes.contains(first + position))
            if let raw = places[first + position] {
                #expect(layer.place(of: Int(position), in: record!).rawValue == raw)
            } else {
                #expect((known?.data ?? 0) & bit == 0)
            }
        }
    }

    @Test func `a touched chunk takes 28 bytes, a scattered one 64 more`() {
        #expect(MemoryLayout<ChunkRecord>.stride == 24)
        var layer = DifferenceLayer(byteCountMax: 1 << 20)
        let record = layer.findOrInsert(9, savedEntry: 0)!
        for position in 0..<16 {
            layer.preserve(
                position, of: record, at: BlockPlace(stored: StorageSlot(UInt32(position))))
        }
        #expect(layer.byteCount == 28, "blocks one behind the other need one base")
        layer.blockMoved(3, of: record, to: BlockPlace(stored: StorageSlot(99)))
        #expect(layer.byteCount == 92)
        layer.blockMoved(3, of: record, to: BlockPlace(stored: StorageSlot(3)))
        #expect(layer.byteCount == 28)
        while !layer.deallocate(slabs: 100) {}
    }

    @Test func `what a processor may fetch early is where the search goes`() throws {
        var layer = DifferenceLayer(byteCountMax: 1 << 20)
        #expect(layer.firstRecord(besides: 7) == nil)
        let record = layer.findOrInsert(7, savedEntry: 0)!
        #expect(layer.firstRecord(besides: 7) == UnsafePointer(layer.record(record)))
        for chunk in 100..<UInt64(400) { _ = layer.findOrInsert(chunk, savedEntry: 0) }
        for chunk in 100..<UInt64(400) {
            let head = try #require(layer.firstRecord(besides: chunk))
            let bucket = layer.bucketAddress(of: chunk).load(as: UInt32.self)
            #expect(head == UnsafePointer(layer.record(bucket)))
            #expect(layer.bucketAddress(of: head.pointee.chunk) == layer.bucketAddress(of: chunk))
        }
        while !layer.deallocate(slabs: 100) {}
    }

    @Test func `chunks at the end of the largest device are told apart`() throws {
        var layer = DifferenceLayer(byteCountMax: 1 << 20)
        let last = ChunkRecord.chunkCountMax - 1
        let chunks = [last, last - 1, last >> 1, 0, 1 << 31, 1 << 32, 1 << 33]
        for chunk in chunks {
            let inserted = layer.findOrInsert(chunk, savedEntry: chunk &* 3)
            let record = try #require(inserted)
            layer.preserve(0, of: record, at: BlockPlace(stored: StorageSlot(5)))
            layer.preserve(1, of: record, at: BlockPlace(stored: StorageSlot(17)))
        }
        for (index, chunk) in chunks.enumerated() {
            #expect(layer.find(chunk) == UInt32(index))
            #expect(layer.record(UInt32(index)).pointee.chunk == chunk)
            #expect(layer.record(UInt32(index)).pointee.savedEntry == chunk &* 3)
            #expect(layer.place(of: 1, in: UInt32(index)).rawValue == 17)
        }
        layer.forget(0, of: 0)
        layer.forget(1, of: 0)
        layer.recordMerged(0)
        #expect(layer.record(0).pointee.isMerged)
        #expect(!layer.record(1).pointee.isMerged)
        #expect(layer.record(0).pointee.chunk == last)
        while !layer.deallocate(slabs: 100) {}
    }

    @Test func `a block that is preserved is no longer copied`() throws {
        var layer = DifferenceLayer(byteCountMax: 1 << 20)
        let inserted = layer.findOrInsert(4, savedEntry: 0)
        let index = try #require(inserted)
        let record = layer.record(index)
        record.pointee.copying |= 0b1111
        layer.preserveZero(0b1, of: index)
        layer.preserve(1, of: index, at: BlockPlace(stored: StorageSlot(7)))
        #expect(record.pointee.copying == 0b1100)
        #expect((record.pointee.zero, record.pointee.data) == (0b1, 0b10))
        record.pointee.copying |= 0b1_0011
        #expect(record.pointee.copying == 0b1_1100)
        #expect((record.pointee.zero, record.pointee.data) == (0b1, 0b10))
        layer.forget(0, of: index)
        layer.forget(1, of: index)
        #expect((record.pointee.preserved, record.pointee.copying) == (0, 0b1_1100))
        while !layer.deallocate(slabs: 100) {}
    }

    @Test func `metadata stops at its limit`() {
        var layer = DifferenceLayer(byteCountMax: 1000)
        var count: UInt64 = 0
        while layer.findOrInsert(count, savedEntry: 0) != nil { count += 1 }
        #expect(layer.byteCount <= 1000)
        #expect(count == 33)
        while !layer.deallocate(slabs: 100) {}
    }
}

@Suite struct `Extents` {
    @Test func `freed slots rest while their extent is read`() throws {
        var table = ExtentTable()
        let extent = table.add(source: SourceIndex(1), byteOffset: 8 << 20)
        let whole = table.take(upTo: 5000, of: extent)
        let (slot, count) = try #require(whole)
        #expect(count == 1024)
        #expect(table.address(of: StorageSlot(slot.rawValue + 3)).byteOffset == 8 << 20 + 3 * 4096)
        table.readBegan(slot)
        #expect(!did { table.free(StorageSlot(slot.rawValue + 7)) })
        #expect(did { table.take(upTo: 1, of: extent) == nil }, "somebody may be reading it")
        #expect(!did { table.readEnded(slot) })
        let freed = table.take(upTo: 9, of: extent)
        let again = try #require(freed)
        #expect(again.0.rawValue == slot.rawValue + 7)
        #expect(again.1 == 1)
        table.deallocate()
    }

    /// Slots are taken, freed and read in random order; arrays say what each one is.
    @Test(arguments: [1, 2, 3] as [UInt64])
    func `a slot is free, in use or resting, as it was left`(seed: UInt64) throws {
        enum Slot { case free, used, resting }
        var random = Seeded(state: seed)
        var table = ExtentTable()
        let extents = (0..<3).map {
            table.add(source: SourceIndex(0), byteOffset: UInt64($0) << 22)
        }
        var slots = [[Slot]](repeating: [Slot](repeating: .free, count: 1024), count: 3)
        var readers = [0, 0, 0]
        var wholeCount = 0
        for step in 0..<30_000 {
            let which = Int(random.next() % 3)
            let first = extents[which] * ExtentTable.slotsPerExtent
            // Turns of filling and of emptying, so that extents get full and empty again.
            switch random.next() % (step / 3000 % 2 == 0 ? 4 : 6) {
            case 0, 1:
                let limit = Int(random.next() % 40) + 1
                guard let (slot, count) = table.take(upTo: limit, of: extents[which]) else {
                    #expect(!slots[which].contains(.free))
                    continue
                }
                #expect(count <= limit)
                for taken in Int(slot.rawValue - first)..<Int(slot.rawValue - first) + count {
                    #expect(slots[which][taken] == .free)
                    slots[which][taken] = .used
                    table.setChecksum(
                        UInt32(taken * 3 + which), of: StorageSlot(first + UInt32(taken)))
                }
                if !slots[which].contains(where: { $0 != .used }) { wholeCount += 1 }
            case 2 where readers[which] < 3:
                table.readBegan(StorageSlot(first))
                readers[which] += 1
            case 2, 3:
                guard readers[which] > 0 else { continue }
                _ = table.readEnded(StorageSlot(first))
                readers[which] -= 1
                guard readers[which] == 0 else { continue }
                for index in 0..<1024 where slots[which][index] == .resting {
                    slots[which][index] = .free
                }
            default:
                for _ in 0..<40 {
                    let index = Int(random.next() % 1024)
                    guard slots[which][index] == .used else { continue }
                    let slot = StorageSlot(first + UInt32(index))
                    #expect(table.checksum(of: slot) == UInt32(index * 3 + which))
                    _ = table.free(slot)
                    slots[which][index] = readers[which] > 0 ? .resting : .free
                }
            }
            #expect(Int(table.freeCount(of: extents[which])) == slots[which].count { $0 == .free })
        }
        #expect(wholeCount > 3, "extents were wholly in use")
        #expect(table.usedCount == UInt64(slots.joined().count { $0 == .used }))
        table.deallocate()
    }

    @Test(arguments: [1, 4, 63, 64, 65, 1024] as [UInt32])
    func `a small extent has as many blocks as it was given, and counts as full then`(
        slotCount: UInt32
    ) throws {
        var table = ExtentTable()
        let first = table.add(source: SourceIndex(0), byteOffset: 0, slotCount: slotCount)
        let second = table.add(source: SourceIndex(0), byteOffset: 1 << 22, slotCount: slotCount)
        #expect(!did { table.isNearlyFull(first) })
        var taken: [UInt32] = []
        while let (slot, count) = table.take(upTo: 3, of: first) {
            taken += (0..<UInt32(count)).map { slot.rawValue + $0 }
        }
        #expect(taken == Array(0..<slotCount))
        #expect(did { table.isNearlyFull(first) } == (slotCount >= 4))
        #expect(table.freeCount(of: first) == 0)
        #expect(table.freeCount(of: second) == slotCount)
        let other = table.take(upTo: 1, of: second)
        #expect(try #require(other).0.rawValue == ExtentTable.slotsPerExtent)
        #expect(table.address(of: StorageSlot(ExtentTable.slotsPerExtent)).byteOffset == 1 << 22)
        #expect(!did { table.setOpen(false, first) })
        for slot in taken.dropLast() { #expect(!did { table.free(StorageSlot(slot)) }) }
        #expect(did { table.free(StorageSlot(slotCount - 1)) })
        table.deallocate()
    }

    @Test func `an extent goes back when it is closed, unused and unread`() throws {
        var table = ExtentTable()
        let extent = table.add(source: SourceIndex(0), byteOffset: 0)
        let two = table.take(upTo: 2, of: extent)
        let (slot, _) = try #require(two)
        table.setChecksum(7, of: slot)
        table.setChecksum(9, of: StorageSlot(slot.rawValue + 1))
        #expect(table.checksum(of: slot) == 7)
        #expect(table.checksum(of: StorageSlot(slot.rawValue + 1)) == 9)
        #expect(!did { table.setOpen(false, extent) })
        table.readBegan(slot)
        #expect(!did { table.free(slot) })
        #expect(!did { table.free(StorageSlot(slot.rawValue + 1)) })
        #expect(did { table.readEnded(slot) })
        #expect(did { table.release(extent).byteOffset == 0 })
        #expect(table.extentCount == 0)
        table.deallocate()
    }
}

@Suite struct `Checksums` {
    @Test func `the check value of CRC32C`() {
        Array("123456789".utf8).withUnsafeBytes { #expect(Checksum.crc32c($0) == 0xE306_9283) }
        [UInt8](repeating: 0, count: 32).withUnsafeBytes {
            #expect(Checksum.crc32c($0) == 0x8A91_36AA)
        }
    }
}

/// Evaluates a mutating call where the macros want a value.
func did(_ body: () -> Bool) -> Bool { body() }

/// SplitMix64.
struct Seeded: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ mixed >> 30) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ mixed >> 27) &* 0x94D0_49BB_1331_11EB
        return mixed ^ mixed >> 31
    }
}
