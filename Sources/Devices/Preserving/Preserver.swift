internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import OriginIO
internal import RingIO
internal import SnapshotCore

/// What a timer of a `Preserver` is for; its token.
enum PreserverTimer: UInt32 {
    /// The engine's.
    case engine
    /// Extents are asked for again.
    case extents
}

/// What an operation of a `Preserver` is for; its tag in the ring.
enum PreserverStep: UInt8 {
    /// Old data of the origin into memory; the token is the copy.
    case copyRead
    /// Preserved blocks into storage; the token is the batch.
    case storageWrite
    /// A read of an image; the token is an `ImageOperation`.
    case imageRead
}

/// A read in the kernel for an image request.
struct ImageOperation {
    enum Source {
        case origin
        case storage(StorageSlot, firstBlock: UInt64, blockCount: Int)
    }

    var request: RequestIndex
    var source: Source
    /// What the engine asked for.
    var offset: UInt64
    var length: UInt64
    /// Bytes read before `offset`, to be aligned.
    var headByteCount: Int
    var destination: UnsafeMutableRawPointer
    /// The next free slot.
    var nextFree: UInt32?
}

/// Reads and writes for a device's snapshots what the engine asks for: old data for copies, preserved
/// blocks to storage, and image reads from the origin and storage. Tells the engine how each ended.
final class Preserver: OriginUser {
    unowned(unsafe) let device: Device
    let loop: EventLoop
    let access: OriginAccess
    let engine: SnapshotEngine
    let preservation: LoopPreservation
    let requests: RequestPool
    /// Vectors of copies: 16 for each.
    let copyVectors: UnsafeMutablePointer<iovec>
    /// Vectors of storage writes: `SnapshotEngine.batchBlockCountMax` for each.
    let batchVectors: UnsafeMutablePointer<iovec>
    /// Operations of the origin and of storage whose completions will come.
    private(set) var underwayCount = 0
    private var operations: [ImageOperation] = []
    private var freeOperation: UInt32?

    static let vectorsPerCopy = 16
    static let vectorsPerBatch = SnapshotEngine.batchBlockCountMax

    init(device: Device, access: OriginAccess, limits: EngineLimits) {
        self.device = device
        self.access = access
        loop = device.loop
        engine = device.engine
        preservation = device.preservation
        requests = device.requests
        copyVectors = .allocate(capacity: limits.copyCount * Self.vectorsPerCopy)
        batchVectors = .allocate(capacity: limits.batchCount * Self.vectorsPerBatch)
        super.init()
    }

    deinit {
        copyVectors.deallocate()
        batchVectors.deallocate()
    }

    /// A slot for an operation; the pool grows to what is under way at a time, which the request
    /// slots bound.
    func begin(_ operation: ImageOperation) -> UInt32 {
        if let index = freeOperation {
            freeOperation = operations[Int(index)].nextFree
            operations[Int(index)] = operation
            return index
        }
        operations.append(operation)
        return UInt32(operations.count - 1)
    }

    /// Takes an operation out.
    func end(_ index: UInt32) -> ImageOperation {
        let operation = operations[Int(index)]
        operations[Int(index)].nextFree = freeOperation
        freeOperation = index
        return operation
    }

    /// An operation was begun; its completion will come unless the result is here. Returns that.
    func begun(_ result: Int32?) -> Int32? {
        if result == nil { underwayCount += 1 }
        return result
    }

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        underwayCount -= 1
        switch PreserverStep(rawValue: tag) {
        case .copyRead: copyReadCompleted(CopyIndex(token), result)
        case .storageWrite: storageWriteCompleted(BatchIndex(token), result)
        case .imageRead: imageReadCompleted(end(token), result)
        case nil: preconditionFailure("a completion of an unknown step")
        }
        device.engineTouched()
    }

    override func turnEnded() { device.turnEnded() }

    override func timerFired(token: UInt32) {
        switch PreserverTimer(rawValue: token) {
        case .engine:
            device.timer = nil
            engine.timeReached(loop.now)
        case .extents: device.askForExtentsAgain()
        case nil: preconditionFailure("a timer of an unknown purpose")
        }
        device.engineTouched()
    }
}
