import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

/// A request in a slot of a simulated device.
struct SimulatedRequest {
    enum Kind { case idle, originWrite, imageRead, imageWrite }

    var kind = Kind.idle
    var operation = RequestOperation.write
    var offset: UInt64 = 0
    var length: UInt64 = 0
    var snapshot = 0
    var isOverlay = false
    /// Bytes known to have reached the origin.
    var appliedEnd: UInt64 = 0
    var isFaultInjected = false
    var startTick: UInt64 = 0
    /// Since when nothing but a snapshot can hold the request up.
    var waitStart: UInt64 = 0
    /// When it was submitted, or the origin answered it last: no wait for a snapshot began earlier.
    var heldSince: UInt64 = 0
    var isIssued = false
    /// The origin was asked for holes and has not answered.
    var isAsking = false
}

/// A snapshot of a simulated device and what its image must show.
final class SimulatedSnapshot {
    var isHeld = false
    var isCorrupted = false
    var isDestroyed = false
    var isOverlayLost = false
    var cutEpoch: UInt32 = 0
    /// The base that was the newest before the cut, ever since it was made; nil when disturbed.
    var exactBase: UInt32?
    var generation: UInt32 = 0
    let index: SnapshotIndex
    var size: UInt64 = 0
    var image: [UInt8] = []
    var overlay: [UInt8] = []
    /// Per block: tick of the last overlay write's arrival, and writes under way.
    var writtenTick: [UInt64] = []
    var writersUnderWay: [Int] = []
    var isUnknown: [Bool] = []

    init(index: SnapshotIndex) { self.index = index }
}

/// A source of difference storage of a simulated device.
final class SimulatedSource {
    var space: StorageSpace
    var extents: [UInt64: UnsafeMutableRawPointer] = [:]
    /// Which it was added to; another one may have the number after it is gone.
    let snapshot: SnapshotIndex
    var isClosed = false
    /// Extents asked for and not answered.
    var askedCount = 0

    init(extentCount: Int, extentByteCount: UInt64, of snapshot: SnapshotIndex) {
        self.snapshot = snapshot
        space = StorageSpace(
            fixed: UInt64(extentCount) * extentByteCount, extentByteCount: extentByteCount)
    }

    func pointer(at byteOffset: UInt64) -> UnsafeMutableRawPointer {
        let extent = byteOffset / space.extentByteCount * space.extentByteCount
        guard let base = extents[extent] else {
            preconditionFailure("storage is used within granted extents")
        }
        return base + Int(byteOffset - extent)
    }

    /// What came back is clean at once.
    func erase() {
        guard let offsets = space.erasureDue() else { return }
        for offset in offsets {
            space.erased(
                ByteRange(offset: offset, length: space.extentByteCount), isClean: true)
        }
        space.erasureEnded()
    }

    deinit { for base in extents.values { base.deallocate() } }
}

/// One device: its engine, its origin's bytes and what the model knows about it.
final class SimulatedDevice {
    static let requestCount = 48

    var engine: SnapshotEngine
    /// Bytes now, and those that there is memory for.
    var size: UInt64
    let capacity: UInt64
    /// Bytes before the last resize: late users know nothing else.
    var formerSize: UInt64
    let origin: UnsafeMutableRawPointer
    let mapEntries: UnsafeMutablePointer<UInt64>
    let mapReserved: UnsafeMutablePointer<UInt64>
    let chunkCount: UInt64
    var requests = [SimulatedRequest](repeating: SimulatedRequest(), count: requestCount)
    let payloads: UnsafeMutableRawPointer
    let payloadByteCount: Int
    var snapshots: [Int: SimulatedSnapshot] = [:]
    var sources: [Int: SimulatedSource] = [:]
    var originWritesUnderWay = 0
    var prepared: SimulatedSnapshot?
    var isGateClosed = false
    var isSwitched = false
    /// Blocks changed per epoch for certain, and blocks that may be reported.
    var changed: [UInt32: [Bool]] = [:]
    var touched: [UInt32: [Bool]] = [:]
    /// Epochs that ended with a cut still usable as a base, oldest first, and the sizes then.
    var bases: [UInt32] = []
    var baseSizes: [UInt32: UInt64] = [:]
    /// Bases that were the newest ever since they were made.
    var newestBase: UInt32 = 0
    var wasNewestBaseDisturbed = false
    var isTrackingLost = false
    var timer: UInt64?
    /// Until this tick every storage write and every request for room fails.
    var outageEnd: UInt64 = 0
    var mapAnswersUnderWay = Set<UInt64>()

    /// Blocks of the largest size it can have.
    var blockCount: Int { Int((capacity + 4095) / 4096) }

    init(size: UInt64, buffers: BlockBuffers, limits: EngineLimits) {
        self.size = size
        formerSize = size
        capacity = size + size / 2 + 4096
        chunkCount = (capacity + chunkByteCount - 1) / chunkByteCount
        origin = .allocate(byteCount: Int(capacity), alignment: 4096)
        origin.initializeMemory(as: UInt8.self, repeating: 0, count: Int(capacity))
        mapEntries = .allocate(capacity: Int(chunkCount))
        mapEntries.initialize(repeating: 0, count: Int(chunkCount))
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        mapReserved = .allocate(capacity: words)
        mapReserved.initialize(repeating: 0, count: words)
        payloadByteCount = Int(capacity)
        payloads = .allocate(byteCount: Self.requestCount * payloadByteCount, alignment: 4096)
        let map = ChangeMap(
            entries: mapEntries, reservedPages: mapReserved, chunkCount: chunkCount,
            current: .first, newestBase: 0)
        engine = SnapshotEngine(size: size, map: map, buffers: buffers, limits: limits)
    }

    deinit {
        origin.deallocate()
        mapEntries.deallocate()
        mapReserved.deallocate()
        payloads.deallocate()
    }

    /// What held requests up was not a snapshot: their waits start over.
    func restartWaits(now: UInt64) {
        for slot in requests.indices { requests[slot].waitStart = now }
    }

    /// By index: a dictionary's own order differs from run to run, and replay with it.
    var snapshotsInOrder: [SimulatedSnapshot] {
        snapshots.values.sorted { $0.index.rawValue < $1.index.rawValue }
    }

    /// A map without a change, for a new generation; what the model knows goes with the old one.
    func newMap() -> ChangeMap {
        mapEntries.update(repeating: 0, count: Int(chunkCount))
        bases = []
        baseSizes = [:]
        newestBase = 0
        changed = [:]
        touched = [:]
        isTrackingLost = false
        return ChangeMap(
            entries: mapEntries, reservedPages: mapReserved, chunkCount: chunkCount,
            current: .first, newestBase: 0)
    }

    /// The origin has another size: what is lost is lost, what is new is zero and changed. Requests
    /// that wait and reach beyond the end may fail.
    func resize(to newSize: UInt64) {
        let (lower, upper) = (min(size, newSize), max(size, newSize))
        (origin + Int(lower)).initializeMemory(
            as: UInt8.self, repeating: 0, count: Int(upper - lower))
        if newSize > size {
            note(&changed, offset: size, length: newSize - size)
            note(&touched, offset: size, length: newSize - size)
        }
        for slot in requests.indices
        where requests[slot].kind == .originWrite
            && requests[slot].offset + requests[slot].length > newSize
        {
            requests[slot].isFaultInjected = true
        }
        formerSize = size
        size = newSize
    }

    func payload(_ request: UInt32) -> UnsafeMutableRawPointer {
        payloads + Int(request) * payloadByteCount
    }

    func note(
        _ table: inout [UInt32: [Bool]], offset: UInt64, length: UInt64, epoch: UInt32? = nil
    ) {
        let epoch = epoch ?? engine.epoch.rawValue
        if table[epoch] == nil { table[epoch] = [Bool](repeating: false, count: blockCount) }
        for block in blocks(touching: ByteRange(offset: offset, length: length)) {
            table[epoch]![Int(block)] = true
        }
    }
}
