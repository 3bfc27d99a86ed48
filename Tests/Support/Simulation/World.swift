import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

// Simulation runs the engine on simulated origins, storage, clock and scheduler, and checks after
// every step the guarantees, against plain arrays.
//
// The origin's bytes are the truth about the origin; an image must equal a copy of them made at
// its cut, when no write is under way. Whatever may happen at any moment of an I/O is done at a
// random one: a write's bytes arrive at issue, at completion, or half and half; a read sees them
// then; a storage write fetches its buffers then, so that reuse of a buffer shows.

/// Something that was started and will complete at some later step.
enum Pending {
    case originWrite(UInt32, offset: UInt64, length: UInt64)
    case copyRead(CopyIndex, offset: UInt64, length: UInt64, isRead: Bool)
    case storageWrite(BatchIndex, SourceIndex, byteOffset: UInt64, isFetched: Bool)
    case imageOriginRead(UInt32, offset: UInt64, length: UInt64, isRead: Bool)
    case imageStorageRead(
        UInt32, SourceIndex, byteOffset: UInt64, slot: StorageSlot, firstBlock: UInt64,
        blockCount: Int)
    case fill(UInt32)
    /// `answer`: what the origin had when it was looked at, nil until then.
    case findHoles(UInt32, offset: UInt64, answer: HoleAnswer?)
    case extent(SourceIndex, StoragePurpose)
    case mapPage(UInt64)
}

/// What lies at an offset of the origin.
struct HoleAnswer {
    var isHole: Bool
    var length: UInt64
}

/// A world made from one seed. `run` returns the violation found, or nil.
final class World {
    let seed: UInt64
    var random: SeededGenerator
    var profile: Profile
    var buffers = BlockBuffers(capacity: 256)
    let bufferBytes: UnsafeMutableRawPointer
    var devices: [SimulatedDevice] = []
    var pending: [(device: Int, what: Pending)] = []
    var now: UInt64 = 1000
    var tick: UInt64 = 0
    var stamp: UInt64 = 0
    var operations = 0
    var violation: String?
    var coverage: Coverage
    var cut: Cut?
    var isWindingDown = false
    /// An image loses a range with its origin.
    var isCutShort = false
    /// A storage read brought back everything as it was stored: nothing may be called lost.
    var isReadSound = false
    let limits: EngineLimits

    init(seed: UInt64, coverage: Coverage) {
        self.seed = seed
        self.coverage = coverage
        var random = SeededGenerator(seed: seed)
        profile = Profile(&random)
        self.random = random
        bufferBytes = .allocate(byteCount: 256 * 4096, alignment: 4096)
        var limits = EngineLimits(
            requestCount: SimulatedDevice.requestCount, copyCount: profile.copyCount,
            batchCount: 8, snapshotCount: 16, sourceCount: 32,
            layerByteCountMax: profile.layerByteCountMax)
        limits.scannedByteCountMin = profile.scannedByteCountMin
        limits.heldPieceByteCount = chunkByteCount * UInt64(1 + self.random.below(3))
        limits.freePieceByteCount = chunkByteCount * UInt64(1 + self.random.below(6))
        limits.heldHoleChunkCountMax = self.random.below(40)
        limits.piecesPerTurn = 1 + self.random.below(3)
        limits.chunksPerTurn = UInt64(1 + self.random.below(4))
        limits.resumedPerTurn = 1 + self.random.below(3)
        limits.imageWindowBlockCount = 16 << UInt64(self.random.below(5))
        limits.imageBlocksPerTurn = 16 << self.random.below(5)
        limits.batchesPerTurn = 1 + self.random.below(4)
        self.limits = limits
        for _ in 0..<profile.deviceCount {
            let size: UInt64
            switch self.random.below(6) {
            case 0: size = 1 + UInt64(self.random.below(5000))
            case 1: size = 512 * UInt64(1 + self.random.below(300))
            case 2: size = 65536 * UInt64(1 + self.random.below(12))
            default: size = 512 * UInt64(100 + self.random.below(1400))
            }
            devices.append(
                SimulatedDevice(size: size, buffers: buffers, limits: limits))
            devices.last!.engine.originReportsHoles = profile.reportsHoles
        }
    }

    deinit { bufferBytes.deallocate() }

    func violate(_ text: String) {
        if violation == nil { violation = text }
    }

    func buffer(_ index: BufferIndex) -> UnsafeMutableRawPointer {
        bufferBytes + Int(index.rawValue) * 4096
    }

    /// Runs about `count` operations, then winds down and looks for leaks.
    func run(operations count: Int) -> String? {
        while operations < count, violation == nil { step() }
        if violation == nil { windDown() }
        return violation
    }

    func step() {
        tick += 1
        now += UInt64(random.below(2000))
        for number in devices.indices {
            guard let timer = devices[number].timer, timer <= now else { continue }
            devices[number].timer = nil
            devices[number].engine.timeReached(now)
            operations += 1
            coverage.hit(.timeReached)
            perform(number)
        }
        for number in devices.indices { checkWaits(number) }
        if cut != nil { stepCut() }
        if profile.crashes, random.oneIn(2000) {
            crash()
            return
        }
        if profile.outages, random.oneIn(40) { failAllStorage() }
        // Sometimes much is under way, sometimes little.
        let wantsCompletion = pending.count > random.below(60)
        if wantsCompletion, !pending.isEmpty {
            completeOne()
        } else {
            startSomething()
        }
        let number = random.below(devices.count)
        if random.oneIn(2) { endTurn(number) }
    }

    /// No writer waits for a snapshot longer than its policy says, and a little for the turn.
    private func checkWaits(_ number: Int) {
        let device = devices[number]
        guard !device.isGateClosed, device.mapAnswersUnderWay.isEmpty else { return }
        let limit = profile.policy.limitNanoseconds + 100_000
        for request in device.requests
        where request.kind == .originWrite && !request.isIssued && !request.isAsking
            && request.operation != .discard && now > request.waitStart + limit
        {
            violate("device \(number): a writer waits for longer than its policy says")
        }
    }

    func endTurn(_ number: Int) {
        let engine = devices[number].engine
        engine.turnEnded(now: now)
        perform(number)
        for other in devices.indices where buffers.freeCount > 0 {
            if devices[other].engine.waitsForBuffers {
                devices[other].engine.buffersFreed()
                perform(other)
            }
        }
    }

    func completeOne() {
        var index = random.below(pending.count)
        if profile.isStorageSlow, case .storageWrite = pending[index].what, !random.oneIn(20) {
            index = random.below(pending.count)
        }
        complete(at: index)
    }

    func complete(at index: Int) {
        let (number, what) = pending[index]
        pending.swapAt(index, pending.count - 1)
        pending.removeLast()
        operations += 1
        complete(number, what)
        perform(number)
        isReadSound = false
    }

    // MARK: The end

    private func windDown() {
        isWindingDown = true
        drain(limit: 200_000)
        if violation != nil { return }
        for number in devices.indices {
            for snapshot in devices[number].snapshotsInOrder where !snapshot.isDestroyed {
                if random.oneIn(2) { readWhole(number, snapshot) }
            }
        }
        drain(limit: 200_000)
        for number in devices.indices { destroyAll(number) }
        drain(limit: 200_000)
        guard violation == nil else { return }
        if buffers.freeCount != buffers.capacity {
            violate("\(buffers.capacity - buffers.freeCount) buffers leaked")
        }
        for (number, device) in devices.enumerated() {
            if !device.snapshots.isEmpty { violate("device \(number): a snapshot never went") }
            if !device.sources.isEmpty { violate("device \(number): a source never drained") }
            if device.engine.hasWork { violate("device \(number): work without end") }
        }
    }

    private func drain(limit: Int) {
        var left = limit
        while left > 0, violation == nil {
            left -= 1
            tick += 1
            now += 1000
            if cut != nil { stepCut() }
            if !pending.isEmpty { completeOne() }
            for number in devices.indices {
                if let timer = devices[number].timer, timer <= now {
                    devices[number].timer = nil
                    devices[number].engine.timeReached(now)
                    perform(number)
                }
                endTurn(number)
            }
            guard pending.isEmpty, cut == nil, devices.allSatisfy({ !$0.engine.hasWork }) else {
                continue
            }
            guard let timer = devices.compactMap(\.timer).min() else { break }
            now = max(now, timer)
        }
        if left == 0 { violate("the world does not come to rest") }
        for (number, device) in devices.enumerated() {
            for (slot, request) in device.requests.enumerated() where request.kind != .idle {
                violate("device \(number): request \(slot) (\(request.kind)) is stuck")
            }
        }
    }
}
