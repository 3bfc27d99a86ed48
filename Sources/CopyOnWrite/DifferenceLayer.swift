// CopyOnWrite keeps which blocks of a device were preserved since a cut, and where they are.
//
// A layer finds a chunk's record by linear hashing: buckets are chains through the records, and
// each insertion splits one bucket, so that growth costs the same at every insertion and nothing
// is ever rehashed as a whole.
//
// Invariants
// - A chunk has at most one record in a layer; records are never removed, only spent by a merge.
// - Bytes used stay at or below `byteCountMax`; `findOrInsert` refuses what would exceed it.
// - Loads and places of a record change only through the methods here.
// - A chunk's record keeps its index as long as the layer lives.

/// The difference layer of one device and snapshot, or the overlay of one image.
@usableFromInline package struct DifferenceLayer {
    private typealias Side = InlineArray<16, UInt32>

    @usableFromInline private(set) var records = SlabPool<ChunkRecord>(slabShift: 9)
    @usableFromInline private(set) var buckets = SlabPool<UInt32>(slabShift: 10)
    private var sides = SlabPool<Side>(slabShift: 6)
    private var freeSide = SlabPool<Side>.none
    private var sidesInUse: UInt64 = 0
    /// Buckets below have been split in this round; a round doubles `roundMask + 1` buckets.
    @usableFromInline private(set) var splitPosition: UInt32 = 0
    @usableFromInline private(set) var roundMask: UInt32 = 0
    /// The chunk that `findOrInsert` was last asked for and its record: a write asks several times.
    private var recentChunk: UInt64?
    private var recentRecord = ChunkRecord.none
    /// Most bytes of metadata.
    package let byteCountMax: UInt64
    /// Blocks in `preserved` masks, zero ones included.
    package private(set) var preservedCount: UInt64 = 0
    /// Of these, those that are all zero and take no space.
    package private(set) var zeroCount: UInt64 = 0
    /// True once `deallocate` began: the records are no longer there.
    package private(set) var isShrinking = false

    package init(byteCountMax: UInt64) {
        self.byteCountMax = byteCountMax
        _ = buckets.append(ChunkRecord.none)
    }

    /// Records handed out, spent ones included: indexes are `0 ..< recordCount`.
    package var recordCount: UInt32 { records.count }

    /// Bytes of metadata in use: 28 per touched chunk, 64 more for each scattered one.
    package var byteCount: UInt64 {
        UInt64(records.count) * Self.byteCountOfRecord + sidesInUse * 64
    }

    /// A record and its share of the buckets.
    private static var byteCountOfRecord: UInt64 {
        UInt64(MemoryLayout<ChunkRecord>.stride + MemoryLayout<UInt32>.stride)
    }

    /// The record's address, valid while the layer lives.
    @inlinable package func record(_ index: UInt32) -> UnsafeMutablePointer<ChunkRecord> {
        records.pointer(to: index)
    }

    /// The chunk's record, or nil.
    @inlinable package func find(_ chunk: UInt64) -> UInt32? {
        guard records.count > 0 else { return nil }
        var index = buckets.pointer(to: bucket(of: chunk)).pointee
        while index != ChunkRecord.none {
            let record = records.pointer(to: index)
            if record.pointee.chunk == chunk { return index }
            index = record.pointee.next
        }
        return nil
    }

    /// Where `find` begins, for a processor to fetch it early.
    @inlinable package func bucketAddress(of chunk: UInt64) -> UnsafeRawPointer {
        UnsafeRawPointer(buckets.pointer(to: bucket(of: chunk)))
    }

    /// The first record that `find` would look at, for a processor to fetch it early; nil when
    /// there is none.
    @inlinable package func firstRecord(besides chunk: UInt64) -> UnsafePointer<ChunkRecord>? {
        let index = buckets.pointer(to: bucket(of: chunk)).pointee
        return index == ChunkRecord.none ? nil : UnsafePointer(records.pointer(to: index))
    }

    /// True when records of so many more chunks are below the metadata limit.
    package func hasRoom(forRecords count: UInt64) -> Bool {
        guard byteCount + 64 <= byteCountMax else { return false }
        return count <= (byteCountMax - byteCount - 64) / Self.byteCountOfRecord
            && count < UInt64(ChunkRecord.none - records.count)
    }

    /// The chunk's record, made if there is none; nil when the metadata limit is reached.
    package mutating func findOrInsert(
        _ chunk: UInt64, savedEntry: @autoclosure () -> UInt64
    ) -> UInt32? {
        if recentChunk == chunk { return recentRecord }
        guard let index = find(chunk) ?? insert(chunk, savedEntry: savedEntry()) else { return nil }
        recentChunk = chunk
        recentRecord = index
        return index
    }

    /// Adds a record for a chunk that has none; nil when the metadata limit is reached.
    private mutating func insert(_ chunk: UInt64, savedEntry: UInt64) -> UInt32? {
        assert(find(chunk) == nil, "a chunk has one record in a layer")
        guard byteCount + Self.byteCountOfRecord + 64 <= byteCountMax,
            records.count < ChunkRecord.none
        else { return nil }
        let index = records.append(
            ChunkRecord(chunk: chunk, savedEntry: savedEntry, next: ChunkRecord.none))
        if records.count > 1 { splitOneBucket() }
        let head = buckets.pointer(to: bucket(of: chunk))
        records.pointer(to: index).pointee.next = head.pointee
        head.pointee = index
        return index
    }

    /// The blocks are preserved and known to be all zero.
    package mutating func preserveZero(_ blocks: UInt16, of index: UInt32) {
        let record = records.pointer(to: index)
        precondition(record.pointee.preserved & blocks == 0, "a block is preserved once")
        record.pointee.becomeZero(blocks)
        preservedCount += UInt64(blocks.nonzeroBitCount)
        zeroCount += UInt64(blocks.nonzeroBitCount)
        // A zero block leaves the rank of the data blocks behind it as it was.
    }

    /// The block is preserved and lies at `place`.
    package mutating func preserve(_ position: Int, of index: UInt32, at place: BlockPlace) {
        let record = records.pointer(to: index)
        let bit: UInt16 = 1 << UInt16(position)
        precondition(record.pointee.preserved & bit == 0, "a block is preserved once")
        let data = record.pointee.data
        if data == 0 {
            assert(!record.pointee.isScattered, "a record without data has no side record")
            record.pointee.base = place.rawValue
        } else if record.pointee.isScattered {
            sides.pointer(to: record.pointee.base).pointee[position] = place.rawValue
        } else if !fits(place, at: position, in: record.pointee) {
            scatter(index)
            sides.pointer(to: record.pointee.base).pointee[position] = place.rawValue
        }
        record.pointee.becomeData(bit)
        preservedCount += 1
    }

    /// Where the data block lies.
    package func place(of position: Int, in index: UInt32) -> BlockPlace {
        let record = records.pointer(to: index).pointee
        let bit: UInt16 = 1 << UInt16(position)
        precondition(record.data & bit != 0, "only a data block has a place")
        if record.isScattered {
            return BlockPlace(rawValue: sides.pointer(to: record.base).pointee[position])
        }
        let rank = (record.data & (bit &- 1)).nonzeroBitCount
        return BlockPlace(rawValue: record.base &+ UInt32(rank))
    }

    /// The data block moved, from memory to storage or from slot to slot.
    package mutating func blockMoved(_ position: Int, of index: UInt32, to place: BlockPlace) {
        let record = records.pointer(to: index)
        let bit: UInt16 = 1 << UInt16(position)
        precondition(record.pointee.data & bit != 0, "only a data block moves")
        if record.pointee.data == bit && !record.pointee.isScattered {
            record.pointee.base = place.rawValue
            return
        }
        if !record.pointee.isScattered { scatter(index) }
        sides.pointer(to: record.pointee.base).pointee[position] = place.rawValue
        gather(index)
    }

    /// The block is no longer kept here: handed over, freed or about to be replaced.
    package mutating func forget(_ position: Int, of index: UInt32) {
        let record = records.pointer(to: index)
        let bit: UInt16 = 1 << UInt16(position)
        precondition(record.pointee.preserved & bit != 0, "only a preserved block is forgotten")
        preservedCount -= 1
        if record.pointee.zero & bit != 0 {
            record.pointee.becomeUntouched(bit)
            zeroCount -= 1
            return
        }
        if record.pointee.data != bit && !record.pointee.isScattered { scatter(index) }
        record.pointee.becomeUntouched(bit)
        if record.pointee.data == 0 && record.pointee.isScattered { releaseSide(index) }
    }

    /// The record's blocks went to another layer, or were freed one by one.
    package mutating func recordMerged(_ index: UInt32) {
        let record = records.pointer(to: index)
        precondition(record.pointee.preserved == 0, "a merged record holds no block")
        precondition(record.pointee.copying == 0, "a merged record waits for no copy")
        record.pointee.isMerged = true
    }

    /// Frees up to `slabs` slabs of each kind. Returns true when all is free; the layer must not
    /// be used afterwards.
    package mutating func deallocate(slabs: Int) -> Bool {
        isShrinking = true
        guard records.shrink(slabs: slabs), sides.shrink(slabs: slabs),
            buckets.shrink(slabs: slabs)
        else { return false }
        records.deallocate()
        sides.deallocate()
        buckets.deallocate()
        return true
    }

    // MARK: Places

    private func fits(_ place: BlockPlace, at position: Int, in record: ChunkRecord) -> Bool {
        let above = ~((UInt16(1) << UInt16(position)) &- 1)
        return !place.isInMemory && !BlockPlace(rawValue: record.base).isInMemory
            && record.data & above == 0
            && place.rawValue == record.base &+ UInt32(record.data.nonzeroBitCount)
    }

    private mutating func scatter(_ index: UInt32) {
        let record = records.pointer(to: index)
        let side: UInt32
        if freeSide != SlabPool<Side>.none {
            side = freeSide
            freeSide = sides.pointer(to: side).pointee[0]
        } else {
            side = sides.append(Side(repeating: 0))
        }
        sidesInUse += 1
        var place = record.pointee.base
        var rest = record.pointee.data
        while rest != 0 {
            sides.pointer(to: side).pointee[rest.trailingZeroBitCount] = place
            place &+= 1
            rest &= rest &- 1
        }
        record.pointee.base = side
        record.pointee.isScattered = true
    }

    /// Gives the side record back when the data blocks lie one behind the other on storage.
    private mutating func gather(_ index: UInt32) {
        let record = records.pointer(to: index)
        let side = sides.pointer(to: record.pointee.base)
        var rest = record.pointee.data
        let base = side.pointee[rest.trailingZeroBitCount]
        var expected = base
        while rest != 0 {
            let place = BlockPlace(rawValue: side.pointee[rest.trailingZeroBitCount])
            guard !place.isInMemory, place.rawValue == expected else { return }
            expected &+= 1
            rest &= rest &- 1
        }
        releaseSide(index)
        record.pointee.base = base
    }

    private mutating func releaseSide(_ index: UInt32) {
        let record = records.pointer(to: index)
        sides.pointer(to: record.pointee.base).pointee[0] = freeSide
        freeSide = record.pointee.base
        sidesInUse -= 1
        record.pointee.isScattered = false
    }

    // MARK: Buckets

    @inlinable func bucket(of chunk: UInt64) -> UInt32 {
        let hash = Self.hash(chunk)
        let position = hash & roundMask
        return position < splitPosition ? hash & (roundMask << 1 | 1) : position
    }

    @inlinable static func hash(_ chunk: UInt64) -> UInt32 {
        // Fibonacci hashing, folded: neighbouring chunks must not share low bits of a pattern.
        let product = chunk &* 0x9E37_79B9_7F4A_7C15
        return UInt32(truncatingIfNeeded: product >> 32 ^ product >> 17)
    }

    private mutating func splitOneBucket() {
        let old = splitPosition
        let wide = roundMask << 1 | 1
        let new = buckets.append(ChunkRecord.none)
        assert(new == old + roundMask + 1, "buckets are split in order")
        var index = buckets.pointer(to: old).pointee
        var stay = ChunkRecord.none
        var move = ChunkRecord.none
        while index != ChunkRecord.none {
            let record = records.pointer(to: index)
            let following = record.pointee.next
            if Self.hash(record.pointee.chunk) & wide == old {
                record.pointee.next = stay
                stay = index
            } else {
                record.pointee.next = move
                move = index
            }
            index = following
        }
        buckets.pointer(to: old).pointee = stay
        buckets.pointer(to: new).pointee = move
        splitPosition += 1
        if splitPosition > roundMask {
            roundMask = wide
            splitPosition = 0
        }
    }
}
