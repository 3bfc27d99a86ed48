import BlockModel
import CLinux
import DataPlane
import Glibc
import OriginIO
import Origins
import RingIO
import Synchronization

/// A device on a loop of its own, driven from test code; ends with `close`.
final class DeviceHarness: Sendable {
    let thread: LoopThread
    let blocking: BlockingPool
    let device: AttachedDevice
    private let client: LoopConfined<HarnessClient>

    init(
        path: String, isReadOnly: Bool = false, sectorBytes: UInt32? = nil,
        blocking pool: BlockingPool? = nil,
        accessing access:
            @escaping @Sendable (OpenedOrigin, EventLoop, BlockingPool) ->
            OriginAccess = { DescriptorAccess($0, loop: $1, blocking: $2) }
    ) async throws {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 64 << 20
        thread = try LoopThread(index: 0, configuration: configuration)
        blocking = try pool ?? BlockingPool(threadCount: 2)
        do {
            device = try await AttachedDevice.attach(
                path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes, on: thread,
                blocking: blocking, accessing: access)
        } catch {
            thread.stopAndJoin()
            blocking.close()
            throw error
        }
        guard
            let client = await thread.mailbox.run({ loop in
                LoopConfined(HarnessClient(loop: loop), on: loop)
            })
        else { preconditionFailure("a fresh loop takes messages") }
        self.client = client
    }

    func close() async -> Fault? {
        let fault = await device.detach()
        thread.stopAndJoin()
        blocking.close()
        return fault
    }

    struct Answer: Sendable {
        var fault: Fault?
        var bytes: [UInt8]
        var extents: [StatusExtent]
    }

    /// Submits a request and returns its outcome.
    func perform(
        _ operation: RequestOperation, offset: UInt64 = 0, length: UInt64 = 0,
        bytes: [UInt8] = [], flags: RequestFlags = [], since base: TrackingBase? = nil,
        on target: LoopConfined<BlockTarget>? = nil
    ) async -> Answer {
        let client = client
        let target = target ?? device.target
        return await withCheckedContinuation { continuation in
            let accepted = thread.mailbox.post { loop in
                client.get(on: loop).start(
                    target.get(on: loop), operation, offset,
                    operation == .write ? UInt64(bytes.count) : length, bytes,
                    flags, base
                ) { continuation.resume(returning: $0) }
            }
            precondition(accepted, "the loop takes messages")
        }
    }

    func write(_ bytes: [UInt8], at offset: UInt64, flags: RequestFlags = []) async -> Fault? {
        await perform(.write, offset: offset, bytes: bytes, flags: flags).fault
    }

    func read(
        _ length: Int, at offset: UInt64, on target: LoopConfined<BlockTarget>? = nil
    ) async -> [UInt8] {
        let answer = await perform(
            .read, offset: offset, length: UInt64(length), on: target)
        precondition(answer.fault == nil, "a read fails: \(String(describing: answer.fault))")
        return answer.bytes
    }
}

/// Submits requests on the loop, as an export would.
private final class HarnessClient: RequestOwner {
    private let loop: EventLoop
    private var waiting: [RequestIndex: (BufferLease?, (DeviceHarness.Answer) -> Void)] = [:]

    init(loop: EventLoop) {
        self.loop = loop
        super.init()
    }

    func start(
        _ target: BlockTarget, _ operation: RequestOperation, _ offset: UInt64, _ length: UInt64,
        _ bytes: [UInt8],
        _ flags: RequestFlags, _ base: TrackingBase?,
        _ finish: @escaping (DeviceHarness.Answer) -> Void
    ) {
        var request = BlockRequest(
            operation: operation, flags: flags, offset: offset, length: length,
            owner: Unmanaged.passUnretained(self))
        request.statusBase = base
        var lease: BufferLease?
        if operation == .read || operation == .write || operation == .blockStatus {
            let range = ByteRange(offset: offset, length: length)
                .roundedOutward(to: target.alignment)
            let room = operation == .blockStatus ? 65536 : Int(range.length)
            guard let found = loop.buffers.lease(byteCount: room, heldBytes: 0) else {
                preconditionFailure("tests stay within the pool")
            }
            lease = found
            let shift = operation == .blockStatus ? 0 : Int(offset - range.offset)
            request.buffer = loop.buffers.address(of: found) + shift
            request.bufferByteCount = room
            if operation == .write {
                request.buffer?.copyMemory(from: bytes, byteCount: bytes.count)
            }
        }
        guard let index = loop.requests.lease(request, heldCount: 0) else {
            preconditionFailure("tests stay within the pool")
        }
        waiting[index] = (lease, finish)
        target.submit(index)
    }

    override func requestFinished(_ index: RequestIndex) {
        guard let (lease, finish) = waiting.removeValue(forKey: index) else {
            preconditionFailure("a request finishes twice")
        }
        let request = loop.requests[index]
        var answer = DeviceHarness.Answer(fault: request.fault, bytes: [], extents: [])
        if request.fault == nil, let buffer = request.buffer {
            if request.operation == .read {
                answer.bytes = Array(
                    UnsafeRawBufferPointer(start: buffer, count: Int(request.length)))
            }
            if request.operation == .blockStatus {
                answer.extents = Array(
                    UnsafeBufferPointer(
                        start: buffer.assumingMemoryBound(to: StatusExtent.self),
                        count: request.resultByteCount / MemoryLayout<StatusExtent>.stride))
            }
        }
        if let lease { loop.buffers.release(lease) }
        loop.requests.release(index)
        finish(answer)
    }
}

/// A folder of files that ends with the test.
final class Folder {
    let path: String

    init(under parent: String = "/var/tmp") {
        var template = Array("\(parent)/stillpoint-test-XXXXXX".utf8CString)
        guard let made = mkdtemp(&template) else {
            preconditionFailure("no folder for the test: errno \(errno)")
        }
        path = String(cString: made)
    }

    deinit {
        for name in names { unlink("\(path)/\(name)") }
        rmdir(path)
    }

    private var names: [String] {
        guard let handle = opendir(path) else { return [] }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            names.append(
                withUnsafePointer(to: &entry.pointee.d_name) {
                    $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
                })
        }
        return names
    }

    /// Makes a file of `size` bytes, sparse unless filled.
    func file(_ name: String = "disk", size: Int, filledWith byte: UInt8? = nil) -> String {
        let file = "\(path)/\(name)"
        let descriptor = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        precondition(descriptor >= 0 && ftruncate(descriptor, off_t(size)) == 0, "no test file")
        if let byte {
            let bytes = [UInt8](repeating: byte, count: size)
            precondition(pwrite(descriptor, bytes, size, 0) == size, "no test file")
        }
        close(descriptor)
        return file
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small and repeatable.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
