import BlockModel
import Glibc
import RingIO

/// A device of the tests: plain memory on a loop, which finishes requests at once, or holds them
/// until it is told to, or fails them.
final class MemoryTarget: BlockTarget {
    enum Mode { case atOnce, held, failing(Fault) }

    private(set) unowned var loop: EventLoop!
    var memory = UnsafeMutableRawPointer.allocate(byteCount: 0, alignment: 4096)
    var mode = Mode.atOnce
    /// Requests that are held.
    private(set) var held: [RequestIndex] = []
    /// Requests seen, in order.
    private(set) var seen: [Seen] = []
    /// Offsets of the writes that were foreseen and expected, in order.
    private(set) var foreseen: [UInt64] = []
    private(set) var expected: [UInt64] = []
    /// What block status answers for each context; the range itself where it has none.
    var extents: [TrackingBase?: [StatusExtent]] = [:]
    /// Set when a buffer is not placed as the contract wants it.
    private(set) var misplacedCount = 0
    var whenUsersChange: (() -> Void)?
    /// Most block status requests, and most bytes of reads, that came in one turn of the loop.
    private(set) var statusesInATurn = 0
    private(set) var readBytesInATurn: UInt64 = 0
    private var turn = (time: UInt64(0), statuses: 0, readBytes: UInt64(0))

    struct Seen: Equatable, Sendable {
        var operation: RequestOperation
        var flags: RequestFlags
        var offset: UInt64
        var length: UInt64
    }

    /// `realByteCount` bytes are memory; a larger `size` is pretended.
    convenience init(loop: EventLoop, size: UInt64, realByteCount: Int, alignment: UInt64) {
        self.init(size: size, alignment: alignment)
        self.loop = loop
        memory.deallocate()
        memory = .allocate(byteCount: realByteCount, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: realByteCount)
    }

    /// Overridden because the compiler (6.3) takes the stub it would make for a loop.
    override init(size: UInt64, alignment: UInt64) {
        super.init(size: size, alignment: alignment)
    }

    deinit { memory.deallocate() }

    override func usersChanged() { whenUsersChange?() }

    override func writeForeseen(at offset: UInt64) { foreseen.append(offset) }
    override func writeExpected(at offset: UInt64) { expected.append(offset) }

    override func submit(_ index: RequestIndex) {
        let request = loop.requests[index]
        seen.append(
            Seen(
                operation: request.operation, flags: request.flags, offset: request.offset,
                length: request.length))
        // Of a flush only the reply repeats the offset, which may be anything.
        precondition(
            request.operation == .flush || request.range.end <= size,
            "a request beyond the end reaches the device")
        if let buffer = request.buffer, request.operation != .blockStatus {
            let address = UInt64(UInt(bitPattern: buffer))
            if address % alignment != request.offset % alignment { misplacedCount += 1 }
        }
        // The loop reads its clock once a turn.
        if turn.time != loop.now { turn = (loop.now, 0, 0) }
        if request.operation == .blockStatus { turn.statuses += 1 }
        if request.operation == .read { turn.readBytes += request.length }
        statusesInATurn = max(statusesInATurn, turn.statuses)
        readBytesInATurn = max(readBytesInATurn, turn.readBytes)
        switch mode {
        case .atOnce: perform(index)
        case .held: held.append(index)
        case .failing(let fault): loop.requests.finish(index, fault)
        }
    }

    /// Performs what is held, last first where `reversed`.
    func releaseHeld(reversed: Bool = false) {
        let indices = reversed ? held.reversed() : held
        held = []
        for index in indices { perform(index) }
    }

    /// What was set for the context, from the range's start to its end at most.
    private func status(of request: BlockRequest) -> [StatusExtent] {
        var answer: [StatusExtent] = []
        var left = request.length
        for extent in extents[request.statusBase] ?? [StatusExtent(length: .max, flags: 0)]
        where left > 0 && !(request.flags.contains(.oneExtent) && answer.count == 1) {
            answer.append(StatusExtent(length: min(extent.length, left), flags: extent.flags))
            left -= answer[answer.count - 1].length
        }
        return answer
    }

    private func perform(_ index: RequestIndex) {
        let request = loop.requests[index]
        let place = memory + Int(truncatingIfNeeded: request.offset)
        switch request.operation {
        case .read:
            request.buffer?.copyMemory(from: place, byteCount: Int(request.length))
        case .write:
            if let buffer = request.buffer {
                place.copyMemory(from: buffer, byteCount: Int(request.length))
            }
        case .discard, .writeZeroes:
            if request.length <= 1 << 20 { memset(place, 0, Int(request.length)) }
        case .flush, .prefetch: break
        case .blockStatus:
            let answer = status(of: request)
            for (position, extent) in answer.enumerated() {
                request.buffer?.storeBytes(
                    of: extent, toByteOffset: 16 * position, as: StatusExtent.self)
            }
            loop.requests[index].resultByteCount = 16 * answer.count
        }
        loop.requests.finish(index, nil)
    }
}
