internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import RingIO
internal import SnapshotCore

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
    var nextFree: UInt32
}

/// The operations in the kernel that serve a device's snapshots: copies, storage and images.
final class Preserver: RingHandler {
    private unowned(unsafe) let device: Device
    /// Vectors of copies: 16 for each.
    let copyVectors: UnsafeMutablePointer<iovec>
    /// Vectors of storage writes: `SnapshotEngine.batchBlockCountMax` for each.
    let batchVectors: UnsafeMutablePointer<iovec>
    private var operations: [ImageOperation] = []
    private var freeOperation = UInt32.max

    static let vectorsPerCopy = 16
    static let vectorsPerBatch = SnapshotEngine.batchBlockCountMax

    init(device: Device, loop: EventLoop, limits: EngineLimits) {
        self.device = device
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
        if freeOperation != .max {
            let index = freeOperation
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

    override func completed(tag: UInt8, token: UInt32, result: Int32, flags: UInt32) {
        switch PreserverStep(rawValue: tag) {
        case .copyRead: device.copyReadCompleted(CopyIndex(token), result)
        case .storageWrite: device.storageWriteCompleted(BatchIndex(token), result)
        case .imageRead: device.imageReadCompleted(end(token), result)
        case nil: preconditionFailure("a completion of an unknown step")
        }
        device.engineTouched()
    }

    override func turnEnded() { device.turnEnded() }

    override func timerFired(token: UInt32) {
        switch PreserverTimer(rawValue: token) {
        case .engine:
            device.timer = nil
            device.engine.timeReached(device.loop.now)
        case .extents: device.askForExtentsAgain()
        case nil: preconditionFailure("a timer of an unknown purpose")
        }
        device.engineTouched()
    }
}
