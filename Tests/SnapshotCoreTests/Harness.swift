import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

/// An engine over nothing: tests say what the origin and the storage answer.
final class Harness {
    let engine: SnapshotEngine
    let buffers: BlockBuffers
    private let entries: UnsafeMutablePointer<UInt64>
    private let reserved: UnsafeMutablePointer<UInt64>
    private var nextAccount: UInt16 = 0

    init(
        size: UInt64 = 1 << 20, mapSize: UInt64? = nil, reserve: Bool = true,
        limits: EngineLimits = EngineLimits(),
        bufferCount: Int = 1024
    ) {
        let chunkCount = ((mapSize ?? size) + chunkByteCount - 1) / chunkByteCount
        entries = .allocate(capacity: Int(chunkCount))
        entries.initialize(repeating: 0, count: Int(chunkCount))
        let words = ChangeMap.reservationWordCount(chunkCount: chunkCount)
        reserved = .allocate(capacity: words)
        reserved.initialize(repeating: 0, count: words)
        let map = ChangeMap(
            entries: entries, reservedPages: reserved, chunkCount: chunkCount, current: .first,
            newestBase: 0)
        if reserve {
            for page in 0..<ChangeMap.pageCount(chunkCount: chunkCount) { map.pageReserved(page) }
        }
        buffers = BlockBuffers(capacity: bufferCount)
        engine = SnapshotEngine(size: size, map: map, buffers: buffers, limits: limits)
    }

    deinit {
        entries.deallocate()
        reserved.deallocate()
    }

    /// Puts something impossible into the change map.
    func damage(chunk: Int, _ raw: UInt64) { entries[chunk] = raw }

    /// All effects that wait, in order.
    func effects() -> [Effect] {
        var all: [Effect] = []
        while let effect = engine.nextEffect() { all.append(effect) }
        return all
    }

    /// The same as text, for comparing.
    func drain() -> [String] {
        effects().map(describe)
    }

    /// Takes a snapshot with one source behind a gate that drains at once.
    func take(policy: OverflowPolicy = .standard, sources: Int = 1) -> SnapshotIndex {
        let snapshot = engine.snapshotPrepared(policy: policy, account: nextAccount)!
        nextAccount += 1
        for _ in 0..<sources { _ = engine.sourceAdded(to: snapshot) }
        engine.gateClosed(now: engine.now)
        _ = engine.cutSwitched(snapshot: snapshot, isBase: true)
        engine.gateOpened(now: engine.now)
        _ = effects()
        return snapshot
    }

    @discardableResult
    func write(
        _ slot: UInt32, _ offset: UInt64, _ length: UInt64,
        operation: RequestOperation = .write, now: UInt64 = 0
    ) -> Admission {
        engine.writeArrived(
            RequestIndex(slot), operation: operation, offset: offset,
            length: length, now: now)
    }

    func originDone(_ slot: UInt32, _ length: UInt64) -> Completion {
        engine.originWriteFinished(RequestIndex(slot), byteCount: length, fault: nil)
    }

    /// The copy's data arrived; blocks in `zeroMask` are zero, checksum of block n is n + 1.
    func copyDone(_ copy: UInt32, _ length: UInt64, zeroMask: UInt16 = 0) {
        let checksums = (1...16).map { UInt32($0) }
        engine.copyReadFinished(
            CopyIndex(copy), byteCount: length, fault: nil, zeroMask: zeroMask,
            checksums: checksums)
    }

    func describe(_ effect: Effect) -> String {
        switch effect {
        case .issue(let request): "issue \(request.rawValue)"
        case .issuePart(let request, let offset, let length):
            "issuePart \(request.rawValue) \(offset)+\(length)"
        case .findHoles(let request, let offset, let length):
            "findHoles \(request.rawValue) \(offset)+\(length)"
        case .finish(let request, let fault):
            "finish \(request.rawValue) \(fault.map { "errno \($0.errnoValue)" } ?? "well")"
        case .readOrigin(let copy, let offset, let length):
            "readOrigin \(copy.rawValue) \(offset)+\(length)"
        case .writeStorage(let batch, let source, let byteOffset, let count):
            "writeStorage \(batch.rawValue) to \(source.rawValue) at \(byteOffset) blocks \(count)"
        case .readOriginForImage(let request, let offset, let length):
            "imageOrigin \(request.rawValue) \(offset)+\(length)"
        case .readStorageForImage(let request, let source, let byteOffset, _, let first, let count):
            "imageStorage \(request.rawValue) from \(source.rawValue) at \(byteOffset) "
                + "block \(first) blocks \(count)"
        case .copyFromMemory(let request, _, let block, let target):
            "memory \(request.rawValue) block \(block)\(target == .payload ? "" : " to buffer")"
        case .fillZero(let request, let first, let count, let target):
            "zero \(request.rawValue) block \(first) blocks \(count)"
                + (target == .payload ? "" : " to buffer")
        case .fillBlocks(let request): "fill \(request.rawValue)"
        case .requestExtent(let source, let purpose): "extent \(source.rawValue) \(purpose)"
        case .releaseExtent(let source, let byteOffset):
            "release \(source.rawValue) \(byteOffset)"
        case .sourceClosed(let source): "closed \(source.rawValue)"
        case .sourceDrained(let source): "drained \(source.rawValue)"
        case .reserveMapPage(let page): "reserve \(page)"
        case .gateDrained: "gateDrained"
        case .snapshotCorrupted(let snapshot, let fault):
            "corrupted \(snapshot.rawValue) errno \(fault.errnoValue)"
        case .overlayCorrupted(let snapshot, let fault):
            "overlayCorrupted \(snapshot.rawValue) errno \(fault.errnoValue)"
        case .snapshotGone(let snapshot): "gone \(snapshot.rawValue)"
        case .timer(let time): time.map { "timer \($0)" } ?? "no timer"
        }
    }
}
