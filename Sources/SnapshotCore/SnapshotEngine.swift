package import BlockModel
package import ChangeTracking
internal import CopyOnWrite
package import EngineState

// SnapshotCore decides what happens to the requests of one device and its images: events come in
// as method calls, effects go out through `nextEffect`. No I/O, no clock, no allocation per
// request.
//
//   write --gate--> map page --mark--> copies of blocks not yet preserved --> issue --> finish
//            |          |                    |  memory or copy short: wait, at most the
//            +-parked---+--------------------+  policy's limit, then the snapshot is given up
//
//   layers of a device, oldest first ("chain"):  [live] [merging] [live] [live = newest]
//   a write copies into the newest live layer only; an image looks in its own layer, then in
//   the newer ones, then in the origin.
//
// Invariants
// - A mark precedes its write, and the old entry is saved in the newest live layer before it.
// - A write is issued only when each of its blocks is preserved in the newest live layer (or one
//   merging above it), or no layer is live.
// - chain[0] is live, or the chain is empty: a layer nobody older inherits from is dropped.
// - Layers above the newest live one are merging; whatever touches a chunk merges it first.
// - A request is on at most one list, and has at most one reason to wait.
// - Between `gateDrained` and `gateOpened` no origin request is under way.

/// The engine of one device. Confined to the device's loop.
package final class SnapshotEngine {
    package let limits: EngineLimits
    package let buffers: BlockBuffers
    var map: ChangeMap
    /// Marking stopped: a map page could not be reserved. Ends with a new map at a cut.
    #if BENCHMARK_WITHOUT_TRACKING
        // A build of `make bench` that marks nothing, to see what marking costs.
        package internal(set) var isTrackingLost = true
    #else
        package internal(set) var isTrackingLost = false
    #endif
    /// Bytes of the device.
    package internal(set) var size: UInt64
    /// Latest time given to the engine, monotonic nanoseconds.
    package internal(set) var now: UInt64 = 0
    /// Counts generations since attach.
    package internal(set) var generationOrdinal: UInt32 = 0

    let requests: RequestLists
    let writes: RequestRecords<WriteRequest>
    let imageRequests: RequestRecords<ImageRequest>
    let copies: UnsafeMutablePointer<CopyRecord>
    let copyBuffers: UnsafeMutablePointer<BufferIndex>
    let batches: UnsafeMutablePointer<BatchRecord>
    let batchBuffers: UnsafeMutablePointer<BufferIndex>
    let snapshots: UnsafeMutablePointer<SnapshotRecord>
    let layers: UnsafeMutablePointer<DifferenceLayer>
    let layerUses: UnsafeMutablePointer<LayerUse>
    /// Layers, oldest first.
    let chain: UnsafeMutablePointer<LayerIndex>
    let layerCapacity: Int
    var chainCount = 0
    /// Position in the chain of the newest live layer, -1 when none is live.
    var newestLive = -1
    var freeingCount = 0
    /// All layers being freed wait for copies or storage writes under way. There is nothing to do for
    /// them until one of those ends.
    var isFreeingHeldUp = false
    var freeCopy: CopyIndex?
    var freeBatch: BatchIndex?
    var copiesInUse = 0
    /// The copy started last: most waits are for it.
    var newestCopy = CopyIndex(0)
    var sources: SourceTable
    var effects = EffectQueue(capacity: 1024)

    /// The origin can be asked for its holes, and what it says is certain.
    package var originReportsHoles = false
    var isGateOpen = true
    /// Gates closed so far.
    var gateCount: UInt64 = 0
    var isDrainWanted = false
    /// Origin requests under way.
    var underWayCount = 0
    var parked = RequestList()
    var mapWaiters = RequestList()
    var memoryWaiters = RequestList()
    var imageMemoryWaiters = RequestList()
    var imageSpaceWaiters = RequestList()
    var ready = RequestList()
    var yielded = RequestList()
    /// What may still be begun in this turn, and whether blocks wait for the next one for it.
    var imageBlocksLeft: Int
    var batchesLeft: Int
    var isStoringPostponed = false
    /// Chunks of holes that may still be marked before the next cut, while a snapshot is held.
    var holeChunkCountLeft = 0
    var delayed = RequestList()
    var lastTimer: UInt64?

    /// Preserved blocks in memory that are not being written yet, in order.
    var storeQueue = BufferList()
    /// Why the queue finds no room although no source is being asked; nil when it finds some.
    var shortage: Fault?
    var preservingBatches = 0
    var overlayBatches = 0

    /// Counters for `snapshot show` and metrics.
    package internal(set) var counters = EngineCounters()

    /// Most blocks of one storage write.
    package static let batchBlockCountMax = 64
    static let attemptsMax: UInt8 = 8

    /// `map` covers the device; `buffers` is shared with the engines of the same loop.
    package init(size: UInt64, map: ChangeMap, buffers: BlockBuffers, limits: EngineLimits) {
        precondition(
            map.chunkCount >= (size + chunkByteCount - 1) / chunkByteCount,
            "the change map covers the device")
        self.limits = limits
        imageBlocksLeft = limits.imageBlocksPerTurn
        batchesLeft = limits.batchesPerTurn
        self.buffers = buffers
        self.map = map
        self.size = size
        requests = RequestLists(capacity: limits.requestCount)
        writes = RequestRecords(capacity: limits.requestCount)
        imageRequests = RequestRecords(capacity: limits.requestCount)
        copies = .allocate(capacity: limits.copyCount)
        copies.initialize(repeating: CopyRecord(), count: limits.copyCount)
        copyBuffers = .allocate(capacity: limits.copyCount * 16)
        copyBuffers.initialize(repeating: .none, count: limits.copyCount * 16)
        for index in 0..<limits.copyCount - 1 { copies[index].next = CopyIndex(UInt32(index + 1)) }
        freeCopy = CopyIndex(0)
        batches = .allocate(capacity: limits.batchCount)
        batches.initialize(repeating: BatchRecord(), count: limits.batchCount)
        batchBuffers = .allocate(capacity: limits.batchCount * Self.batchBlockCountMax)
        batchBuffers.initialize(
            repeating: .none, count: limits.batchCount * Self.batchBlockCountMax)
        for index in 0..<limits.batchCount - 1 {
            batches[index].next = BatchIndex(UInt32(index + 1))
        }
        freeBatch = BatchIndex(0)
        snapshots = .allocate(capacity: limits.snapshotCount)
        snapshots.initialize(repeating: SnapshotRecord(), count: limits.snapshotCount)
        sources = SourceTable(
            capacity: limits.sourceCount, snapshotCount: limits.snapshotCount)
        // A layer and an overlay per snapshot, and as many being merged or freed.
        layerCapacity = limits.snapshotCount * 4
        layers = .allocate(capacity: layerCapacity)
        layerUses = .allocate(capacity: layerCapacity)
        layerUses.initialize(repeating: LayerUse(), count: layerCapacity)
        chain = .allocate(capacity: layerCapacity)
    }

    deinit {
        for index in 0..<layerCapacity where layerUses[index].role != .free {
            _ = layers[index].deallocate(slabs: .max)
        }
        sources.deallocate()
        effects.deallocate()
        requests.deallocate()
        writes.deallocate()
        imageRequests.deallocate()
        copies.deallocate()
        copyBuffers.deallocate()
        batches.deallocate()
        batchBuffers.deallocate()
        snapshots.deallocate()
        layers.deallocate()
        layerUses.deallocate()
        chain.deallocate()
    }

    /// The next thing to do, or nil. Drain it after every event.
    package func nextEffect() -> Effect? { effects.next() }

    /// The epoch in which changes are marked now.
    package var epoch: Epoch { map.current }

    /// The epoch that ended at the newest cut still usable as a base; 0 when there is none.
    package var newestBase: UInt32 { map.newestBase }

    /// True when `turnEnded` has slices of merging or freeing left, or of requests: do not sleep.
    package var hasWork: Bool {
        (freeingCount > 0 && !isFreeingHeldUp) || !yielded.isEmpty || isStoringPostponed
            || (chainCount > 0 && mergingPosition() != nil)
    }

    /// True when somebody waits for a buffer of the shared pool: say `buffersFreed` when another
    /// engine gave some back.
    package var waitsForBuffers: Bool {
        !memoryWaiters.isEmpty || !imageMemoryWaiters.isEmpty
    }

    /// The turn of the loop ends: full batches went out already, now the rest goes; slices of
    /// merging and freeing are done; the timer is set. Once per turn, before effects are drained.
    package func turnEnded(now: UInt64) {
        timeAdvanced(to: now)
        imageBlocksLeft = limits.imageBlocksPerTurn
        batchesLeft = limits.batchesPerTurn
        isStoringPostponed = false
        performSlice()
        resumeYielded()
        settle()
        pumpStorage(isTurnEnd: true)
        settle()
        updateTimer()
    }

    /// Another engine of the loop gave buffers back.
    package func buffersFreed() { settle() }

    func timeAdvanced(to time: UInt64) {
        if time > now { now = time }
    }

    /// Runs what became ready and what can have memory now. Ends every event.
    func settle() {
        while true {
            if let index = requests.pop(&ready) {
                switch requests.kind(of: index) {
                case .write:
                    writes[index].phase = .running
                    advance(index)
                case .image:
                    imageRequests[index].phase = .running
                    imageAdvance(index)
                }
                continue
            }
            if !memoryWaiters.isEmpty, newestLive < 0 || canCopy() {
                let index = requests.pop(&memoryWaiters)!
                writes[index].phase = .running
                advance(index)
                // It waits again: others behind it would only take its place.
                if case .waitingForMemory = writes[index].phase {
                    requests.remove(index, from: &memoryWaiters)
                    requests.prepend(index, to: &memoryWaiters)
                    if ready.isEmpty { break }
                }
                continue
            }
            if !imageMemoryWaiters.isEmpty, buffers.canTakeForImage(16) {
                let index = requests.pop(&imageMemoryWaiters)!
                imageRequests[index].phase = .running
                imageAdvance(index)
                continue
            }
            break
        }
    }

    func canCopy() -> Bool {
        freeCopy != nil && buffers.canTake(account: newestAccount())
    }

    func newestAccount() -> UInt16 {
        snapshots[layerUses[chain[newestLive]].snapshot].account
    }

    /// Puts a request that waited back to work; `settle` runs it.
    func wake(_ index: RequestIndex) {
        switch requests.kind(of: index) {
        case .write: wakeWrite(index)
        case .image: wakeImage(index)
        }
    }

    /// The same for a write, zeroing or discard of the device.
    func wakeWrite(_ index: RequestIndex) {
        writes[index].phase = .ready
        requests.append(index, to: &ready)
    }

    /// The same for a request of an image.
    func wakeImage(_ index: RequestIndex) {
        imageRequests[index].phase = .ready
        requests.append(index, to: &ready)
    }
}
