import Glibc
import TestSupport

// A client for benchmarks that costs little itself, so that what is measured is the server: one
// thread, all requests of a turn in one send, all replies there are in one receive.
//
//   nbd-load SOCKET EXPORT read|write|trim random|sequential|shuffled|zipfian BLOCKBYTES DEPTH SECONDS
//            [SEED [STRIDEBYTES [REQUESTS]]]
//
// Writes and trims end with a flush, whose time counts. Prints one JSON object. `shuffled` visits
// each place once in an order that SEED decides, then all over again; `zipfian` prefers few places
// that lie scattered (exponent 0.99). With STRIDEBYTES requests start
// at its multiples only (4096 bytes at every 65536: the first overwrite of every chunk). REQUESTS
// ends the run after that many instead of SECONDS, so that the same work can be repeated.

/// In which order places are visited.
enum Order: String {
    case random, sequential, shuffled, zipfian
}

/// What each request does.
enum Operation: String {
    case read, write, trim

    /// The command's number in the protocol.
    var command: UInt16 {
        switch self {
        case .read: 0
        case .write: 1
        case .trim: 4
        }
    }
}

/// What to do, from the command line.
struct Load {
    let socket: String
    let export: String
    let operation: Operation
    let order: Order
    let blockBytes: Int
    let depth: Int
    let seconds: Double
    let seed: UInt64
    let strideBytes: Int
    let requests: Int?

    init?(_ arguments: [String]) {
        guard (8...11).contains(arguments.count),
            let operation = Operation(rawValue: arguments[3]),
            let order = Order(rawValue: arguments[4]),
            let blockBytes = Int(arguments[5]), blockBytes > 0,
            let depth = Int(arguments[6]), depth > 0,
            let seconds = Double(arguments[7])
        else { return nil }
        strideBytes = arguments.count > 9 ? Int(arguments[9]) ?? 0 : blockBytes
        requests = arguments.count > 10 ? Int(arguments[10]) ?? 0 : nil
        guard strideBytes >= blockBytes, requests ?? depth >= depth else { return nil }
        socket = arguments[1]
        export = arguments[2]
        self.operation = operation
        self.order = order
        self.blockBytes = blockBytes
        self.depth = depth
        self.seconds = seconds
        seed = arguments.count > 8 ? UInt64(arguments[8]) ?? 1 : 1
    }
}

/// The requests under way and what they cost.
struct Runner {
    let load: Load
    let descriptor: Int32
    let blockCount: UInt64
    private let out: UnsafeMutableRawPointer
    private let input: UnsafeMutableRawPointer
    private let inputCapacity: Int
    private var outCount = 0
    private var started: [UInt64]
    private var latencies: [UInt32] = []
    private var position: UInt64 = 0
    private var random: UInt64
    private var underway = 0
    private var issued = 0
    /// The order of the places of `shuffled`.
    private var order: [UInt32] = []
    private var zipf: Zipf?

    init(_ load: Load, descriptor: Int32, byteCount: UInt64) {
        self.load = load
        self.descriptor = descriptor
        blockCount = byteCount / UInt64(load.strideBytes)
        out = .allocate(byteCount: load.depth * (28 + load.blockBytes), alignment: 64)
        memset(out, 0x5A, load.depth * (28 + load.blockBytes))
        inputCapacity = max(load.depth * (16 + load.blockBytes), 1 << 16)
        input = .allocate(byteCount: inputCapacity, alignment: 64)
        started = Array(repeating: 0, count: load.depth)
        random = load.seed &* 0x9E37_79B9_7F4A_7C15 | 1
        latencies.reserveCapacity(1 << 22)
        if load.order == .zipfian { zipf = Zipf(count: blockCount) }
        if load.order == .shuffled {
            order = Array(0..<UInt32(blockCount))
            for place in stride(from: order.count - 1, to: 0, by: -1) {
                order.swapAt(place, Int(nextRandom() % UInt64(place + 1)))
            }
        }
    }

    private mutating func nextRandom() -> UInt64 {
        random ^= random << 13
        random ^= random >> 7
        random ^= random << 17
        return random
    }

    /// Runs for the time asked for and prints the outcome.
    mutating func run() {
        let begin = now()
        let end = begin + UInt64(load.seconds * 1e9)
        for slot in 0..<load.depth { add(slot) }
        flushOut()
        if load.requests != nil {
            while underway > 0 { receive(goOn: true) }
        } else {
            while underway > 0 { receive(goOn: now() < end) }
        }
        if load.operation != .read {
            putHeader(type: 3, cookie: 0, offset: 0, length: 0)
            flushOut()
            readExactly(16)
        }
        report(seconds: Double(now() - begin) / 1e9)
    }

    private mutating func add(_ slot: Int) {
        let block: UInt64
        switch load.order {
        case .random: block = nextRandom() % blockCount
        case .sequential: block = position
        case .shuffled: block = UInt64(order[Int(position)])
        case .zipfian:
            let rank = zipf?.rank(Double(nextRandom() >> 11) / Double(1 << 53)) ?? 0
            block = rank &* 0x9E37_79B9_7F4A_7C15 % blockCount
        }
        position = (position + 1) % blockCount
        started[slot] = now()
        putHeader(
            type: load.operation.command, cookie: UInt64(slot),
            offset: block * UInt64(load.strideBytes), length: UInt32(load.blockBytes))
        if load.operation == .write { outCount += load.blockBytes }
        underway += 1
        issued += 1
    }

    private mutating func putHeader(type: UInt16, cookie: UInt64, offset: UInt64, length: UInt32) {
        let place = out + outCount
        place.storeBytes(of: UInt32(0x2560_9513).bigEndian, as: UInt32.self)
        place.storeBytes(of: 0, toByteOffset: 4, as: UInt16.self)
        place.storeBytes(of: type.bigEndian, toByteOffset: 6, as: UInt16.self)
        place.storeBytes(of: cookie, toByteOffset: 8, as: UInt64.self)
        place.storeBytes(of: offset.bigEndian, toByteOffset: 16, as: UInt64.self)
        place.storeBytes(of: length.bigEndian, toByteOffset: 24, as: UInt32.self)
        outCount += 28
    }

    private mutating func flushOut() {
        var done = 0
        while done < outCount {
            let sent = send(descriptor, out + done, outCount - done, Int32(MSG_NOSIGNAL))
            guard sent > 0 || errno == EINTR else { fail("send") }
            done += max(sent, 0)
        }
        outCount = 0
    }

    private var inputCount = 0

    /// Takes the replies that are there; each makes room for a new request.
    private mutating func receive(goOn: Bool) {
        let count = recv(descriptor, input + inputCount, inputCapacity - inputCount, 0)
        guard count > 0 || (count < 0 && errno == EINTR) else { fail("recv") }
        inputCount += max(count, 0)
        let replyBytes = 16 + (load.operation == .read ? load.blockBytes : 0)
        var start = 0
        let time = now()
        while inputCount - start >= replyBytes {
            let reply = input + start
            guard reply.loadUnaligned(as: UInt32.self) == UInt32(0x6744_6698).bigEndian,
                reply.loadUnaligned(fromByteOffset: 4, as: UInt32.self) == 0
            else { fail("a reply is an error or no reply") }
            let slot = Int(reply.loadUnaligned(fromByteOffset: 8, as: UInt64.self))
            latencies.append(UInt32(clamping: time - started[slot]))
            underway -= 1
            start += replyBytes
            if goOn, load.requests.map({ issued < $0 }) ?? true { add(slot) }
        }
        if start > 0 {
            memmove(input, input + start, inputCount - start)
            inputCount -= start
        }
        flushOut()
    }

    private func readExactly(_ count: Int) {
        var done = 0
        while done < count {
            let got = recv(descriptor, input + done, count - done, 0)
            guard got > 0 || (got < 0 && errno == EINTR) else { fail("recv") }
            done += max(got, 0)
        }
    }

    private mutating func report(seconds: Double) {
        latencies.sort()
        let mean = latencies.reduce(0.0) { $0 + Double($1) } / Double(latencies.count) / 1000
        func percentile(_ part: Double) -> Double {
            Double(latencies[min(Int(Double(latencies.count) * part), latencies.count - 1)]) / 1000
        }
        print(
            "{\"requests\": \(latencies.count), \"seconds\": \(seconds), \"iops\": "
                + "\(Double(latencies.count) / seconds), \"mean_us\": \(mean), \"p50_us\": "
                + "\(percentile(0.5)), \"p99_us\": \(percentile(0.99)), \"max_us\": "
                + "\(percentile(1))}")
    }
}

/// Ranks by Zipf's law with exponent 0.99, after Gray et al., "Quickly generating billion-record
/// synthetic databases", SIGMOD 1994, section 3.
struct Zipf {
    private let count: Double
    private let zeta: Double
    private let eta: Double
    private static let exponent = 0.99

    init(count: UInt64) {
        self.count = Double(count)
        var sum = 0.0
        for rank in 1...count { sum += pow(Double(rank), -Self.exponent) }
        zeta = sum
        let two = 1 + pow(2, -Self.exponent)
        eta =
            (1 - pow(2 / self.count, 1 - Self.exponent)) / (1 - two / zeta)
    }

    /// The rank, from 0, that belongs to `part` of the probability, 0 ..< 1.
    func rank(_ part: Double) -> UInt64 {
        let scaled = part * zeta
        if scaled < 1 { return 0 }
        if scaled < 1 + pow(0.5, Self.exponent) { return 1 }
        return UInt64(count * pow(eta * part - eta + 1, 1 / (1 - Self.exponent)))
    }
}

/// Monotonic nanoseconds.
func now() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

func fail(_ what: String) -> Never {
    let reason = String(cString: strerror(errno))
    printError("nbd-load: \(what): \(reason)")
    exit(1)
}

func printError(_ text: String) {
    let bytes = Array((text + "\n").utf8)
    _ = write(2, bytes, bytes.count)
}

guard let load = Load(CommandLine.arguments) else {
    printError(
        "usage: nbd-load SOCKET EXPORT read|write|trim random|sequential|shuffled|zipfian "
            + "BLOCKBYTES DEPTH SECONDS [SEED [STRIDEBYTES [REQUESTS]]]"
    )
    exit(2)
}
do {
    let client = try NBDClient(.unix(path: load.socket))
    _ = try client.greet()
    try client.open(load.export, headers: .simple)
    var runner = Runner(load, descriptor: client.descriptor, byteCount: client.byteCount)
    runner.run()
} catch {
    printError("nbd-load: \(error)")
    exit(1)
}
