package import BlockModel
package import CopyOnWrite

// Decides in which slots of difference storage the next blocks are put, and when more room is asked
// for. A source belongs to one snapshot and grants extents; each purpose (preserving, overlay) has
// one that is appended to, and one ahead, so that a writer seldom waits for the next.
//
// Invariants
// - For each source and purpose at most one extent is asked for.
// - A closed source is asked for nothing; it is drained once its last extent is released and
//   nothing that was asked for is on its way.
// - A source that failed gets no more blocks.

/// What a source has for one purpose.
private struct SourceUse {
    /// The extent that is appended to.
    var open: UInt32?
    /// The one handed ahead.
    var ahead: UInt32?
    var isAsking = false
}

/// A storage source as an engine sees it.
private struct SourceRecord {
    enum State: UInt8 { case usable, full, failed }

    var isUsed = false
    var isClosed = false
    var state = State.usable
    /// It failed for want of space: a thin device, say.
    var isOutOfSpace = false
    var isOverlayFull = false
    /// Which it was added to. Another one may have that number once this is closed and asks for
    /// nothing.
    let snapshot: SnapshotIndex
    /// The next source of the same snapshot.
    var next: SourceIndex?
    var extentCount: UInt32 = 0
    /// Blocks in each of its extents.
    let slotsPerExtent: UInt32
    private var preserving = SourceUse()
    private var overlay = SourceUse()

    init(of snapshot: SnapshotIndex, slotsPerExtent: UInt32) {
        self.snapshot = snapshot
        self.slotsPerExtent = slotsPerExtent
        isUsed = true
    }

    subscript(purpose: StoragePurpose) -> SourceUse {
        get {
            switch purpose {
            case .preserving: preserving
            case .overlay: overlay
            }
        }
        set {
            switch purpose {
            case .preserving: preserving = newValue
            case .overlay: overlay = newValue
            }
        }
    }

    var isAskingAny: Bool { preserving.isAsking || overlay.isAsking }

    func isFull(for purpose: StoragePurpose) -> Bool {
        state == .full || (purpose == .overlay && isOverlayFull)
    }
}

/// The sources of a device's snapshots and their extents. What has to be done goes to the effects
/// that the caller hands over.
package struct SourceTable {
    private let records: UnsafeMutablePointer<SourceRecord>
    private let capacity: Int
    /// The first source of each snapshot; the others follow in the order in which they were added.
    private let first: UnsafeMutablePointer<SourceIndex?>
    /// Sources in use lie below.
    private var end = 0
    private var extents = ExtentTable()

    /// Room for `capacity` sources of `snapshotCount` snapshots.
    package init(capacity: Int, snapshotCount: Int) {
        self.capacity = capacity
        records = .allocate(capacity: capacity)
        first = .allocate(capacity: snapshotCount)
        first.initialize(repeating: nil, count: snapshotCount)
    }

    /// Frees the memory; the table must not be used afterwards.
    package mutating func deallocate() {
        extents.deallocate()
        records.deallocate()
        first.deallocate()
    }

    private func record(_ source: SourceIndex) -> UnsafeMutablePointer<SourceRecord> {
        let record = records + Int(source.rawValue)
        precondition(record.pointee.isUsed, "a source that is named is in use")
        return record
    }

    private var used: some Sequence<UnsafeMutablePointer<SourceRecord>> {
        (0..<end).lazy.map { records + $0 }.filter { $0.pointee.isUsed }
    }

    // MARK: Sources come and go

    /// A source for the snapshot, used when those before it are full; nil at the bound. Its extents
    /// have `extentByteCount` bytes: whole blocks, at most 4 MiB.
    package mutating func add(
        to snapshot: SnapshotIndex, extentByteCount: UInt64
    ) -> SourceIndex? {
        precondition(
            extentByteCount > 0 && extentByteCount % blockByteCount == 0, "extents have blocks")
        var place = 0
        while place < end, records[place].isUsed { place += 1 }
        guard place < capacity else { return nil }
        end = max(end, place + 1)
        (records + place).initialize(
            to: SourceRecord(
                of: snapshot, slotsPerExtent: UInt32(extentByteCount / blockByteCount)))
        let source = SourceIndex(UInt16(place))
        if var last = first[Int(snapshot.rawValue)] {
            while let next = record(last).pointee.next { last = next }
            record(last).pointee.next = source
        } else {
            first[Int(snapshot.rawValue)] = source
        }
        return source
    }

    /// The snapshot is gone: its sources live until their last block is freed.
    package mutating func close(of snapshot: SnapshotIndex, _ effects: inout EffectQueue) {
        var next = first[Int(snapshot.rawValue)]
        first[Int(snapshot.rawValue)] = nil
        while let source = next {
            next = record(source).pointee.next
            record(source).pointee.isClosed = true
            effects.append(.sourceClosed(source))
            closeOpenExtents(source, &effects)
            drain(source, &effects)
        }
    }

    /// Nothing more is written to the source.
    package mutating func failed(
        _ source: SourceIndex, _ fault: Fault, _ effects: inout EffectQueue
    ) {
        // Also when it says ENOSPC: its extents have room, and would be tried again forever.
        record(source).pointee.state = .failed
        record(source).pointee.isOutOfSpace = fault == .noSpace
        closeOpenExtents(source, &effects)
    }

    private mutating func closeOpenExtents(_ source: SourceIndex, _ effects: inout EffectQueue) {
        let record = record(source)
        let state = record.pointee.state
        let held = [
            record.pointee[.preserving].open, record.pointee[.overlay].open,
            record.pointee[.preserving].ahead, record.pointee[.overlay].ahead,
        ]
        for purpose in [StoragePurpose.preserving, .overlay] {
            record.pointee[purpose].open = nil
            record.pointee[purpose].ahead = nil
        }
        for case let extent? in held { release(extents.setOpen(false, extent), extent, &effects) }
        if record.pointee.isUsed { record.pointee.state = state }
    }

    private mutating func drain(_ source: SourceIndex, _ effects: inout EffectQueue) {
        let record = records + Int(source.rawValue)
        guard record.pointee.isUsed, record.pointee.isClosed, record.pointee.extentCount == 0,
            !record.pointee.isAskingAny
        else { return }
        record.pointee.isUsed = false
        while end > 0, !records[end - 1].isUsed { end -= 1 }
        effects.append(.sourceDrained(source))
    }

    // MARK: Extents

    /// The extent at `byteOffset` belongs to the source now. Returns the snapshot whose end may
    /// have waited for it: that of a closed source.
    package mutating func granted(
        _ source: SourceIndex, _ purpose: StoragePurpose, byteOffset: UInt64,
        _ effects: inout EffectQueue
    ) -> SnapshotIndex? {
        let record = record(source)
        record.pointee[purpose].isAsking = false
        record.pointee.extentCount += 1
        let extent = extents.add(
            source: source, byteOffset: byteOffset, slotCount: record.pointee.slotsPerExtent)
        guard record.pointee.isClosed else {
            record.pointee[purpose].ahead = extent
            return nil
        }
        release(extents.setOpen(false, extent), extent, &effects)
        return record.pointee.snapshot
    }

    /// No extent: the source is full, or it fails, and then nothing more is written to it. Returns
    /// the snapshot whose end may have waited for it: that of a closed source.
    package mutating func refused(
        _ source: SourceIndex, _ purpose: StoragePurpose, fault: Fault,
        _ effects: inout EffectQueue
    ) -> SnapshotIndex? {
        let record = record(source)
        record.pointee[purpose].isAsking = false
        noteFull(record, purpose)
        if fault != .noSpace { record.pointee.state = .failed }
        guard record.pointee.isClosed else { return nil }
        drain(source, &effects)
        return record.pointee.snapshot
    }

    private func noteFull(
        _ record: UnsafeMutablePointer<SourceRecord>, _ purpose: StoragePurpose
    ) {
        switch purpose {
        case .preserving: if record.pointee.state == .usable { record.pointee.state = .full }
        case .overlay: record.pointee.isOverlayFull = true
        }
    }

    private mutating func ask(
        _ source: SourceIndex, _ purpose: StoragePurpose, _ effects: inout EffectQueue
    ) {
        let record = record(source)
        guard record.pointee.state == .usable, !record.pointee.isFull(for: purpose),
            record.pointee[purpose].ahead == nil, !record.pointee[purpose].isAsking
        else { return }
        guard extents.extentCount < ExtentTable.extentCountMax else {
            // As many blocks as this device can number: no source has room for more of them.
            return noteFull(record, purpose)
        }
        record.pointee[purpose].isAsking = true
        effects.append(.requestExtent(source, purpose))
    }

    private mutating func release(_ isIdle: Bool, _ extent: UInt32, _ effects: inout EffectQueue) {
        guard isIdle else { return }
        let (source, byteOffset) = extents.release(extent)
        let record = record(source)
        record.pointee.extentCount -= 1
        // What comes back can be asked for again.
        if record.pointee.state == .full { record.pointee.state = .usable }
        record.pointee.isOverlayFull = false
        effects.append(.releaseExtent(source, byteOffset: byteOffset))
        drain(source, &effects)
    }

    /// Extents that the source has.
    package func extentCount(of source: SourceIndex) -> UInt32 {
        record(source).pointee.extentCount
    }

    // MARK: What is on its way

    /// A source of the snapshot was asked for an extent and has not answered.
    package func isAsking(of snapshot: SnapshotIndex) -> Bool {
        used.contains { $0.pointee.snapshot == snapshot && $0.pointee.isAskingAny }
    }

    /// The same of the sources that it still has and that have not failed, for one purpose.
    package func isSpaceComing(_ snapshot: SnapshotIndex, _ purpose: StoragePurpose) -> Bool {
        var next = first[Int(snapshot.rawValue)]
        while let source = next {
            let record = record(source)
            if record.pointee.state != .failed, record.pointee[purpose].isAsking { return true }
            next = record.pointee.next
        }
        return false
    }

    /// Why no block can be preserved now; nil while a source is asked for room.
    package var shortage: Fault? {
        var fault = Fault.noSpace
        for record in used {
            if record.pointee[.preserving].isAsking, !record.pointee.isClosed { return nil }
            if record.pointee.state == .failed, !record.pointee.isOutOfSpace {
                fault = .inputOutput
            }
        }
        return fault
    }

    // MARK: Slots

    /// Up to `limit` neighbouring slots in the sources of a snapshot, one source after the other. A
    /// source that is growing is waited for, unless `isUrgent`: writers wait already.
    package mutating func take(
        upTo limit: Int, of snapshot: SnapshotIndex, for purpose: StoragePurpose, isUrgent: Bool,
        _ effects: inout EffectQueue
    ) -> (StorageSlot, Int)? {
        var next = first[Int(snapshot.rawValue)]
        while let source = next {
            let record = record(source)
            if record.pointee.state != .failed {
                if let taken = take(upTo: limit, from: source, for: purpose, &effects) {
                    return taken
                }
                // The next source's turn comes when this one is full, not while it grows.
                if record.pointee[purpose].isAsking, !isUrgent { return nil }
            }
            next = record.pointee.next
        }
        return nil
    }

    private mutating func take(
        upTo limit: Int, from source: SourceIndex, for purpose: StoragePurpose,
        _ effects: inout EffectQueue
    ) -> (StorageSlot, Int)? {
        let record = record(source)
        if let open = record.pointee[purpose].open {
            if let taken = extents.take(upTo: limit, of: open) {
                if extents.isNearlyFull(open) { ask(source, purpose, &effects) }
                return taken
            }
            record.pointee[purpose].open = nil
            release(extents.setOpen(false, open), open, &effects)
        }
        var next = record.pointee[purpose].ahead
        record.pointee[purpose].ahead = nil
        if next == nil, purpose == .preserving || !record.pointee.isOverlayFull {
            ask(source, purpose, &effects)
        }
        if next == nil, record.pointee.isFull(for: purpose),
            let reusable = extents.findReusable(source: source)
        {
            _ = extents.setOpen(true, reusable)
            next = reusable
        }
        guard let next else { return nil }
        record.pointee[purpose].open = next
        return extents.take(upTo: limit, of: next)
    }

    /// The slot's block is not needed any more.
    package mutating func free(_ slot: StorageSlot, _ effects: inout EffectQueue) {
        let extent = ExtentTable.extent(of: slot)
        release(extents.free(slot), extent, &effects)
    }

    /// A read of slots of one extent begins at `slot`.
    package mutating func readBegan(_ slot: StorageSlot) { extents.readBegan(slot) }

    /// It ended.
    package mutating func readEnded(_ slot: StorageSlot, _ effects: inout EffectQueue) {
        release(extents.readEnded(slot), ExtentTable.extent(of: slot), &effects)
    }

    /// Where the slot's bytes are.
    package func address(of slot: StorageSlot) -> (source: SourceIndex, byteOffset: UInt64) {
        extents.address(of: slot)
    }

    /// CRC32C of the slot's block.
    package func checksum(of slot: StorageSlot) -> UInt32 { extents.checksum(of: slot) }

    /// Keeps the CRC32C of the slot's block.
    package func setChecksum(_ checksum: UInt32, of slot: StorageSlot) {
        extents.setChecksum(checksum, of: slot)
    }
}
