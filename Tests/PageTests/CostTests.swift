import CTestSupport
import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `What the page costs` {
    @Test func `is less than a mebibyte while nobody looks`() throws {
        func resident(_ arguments: [String]) throws -> Int {
            // The least of several: what a start leaves behind is more or less.
            try (0..<3).map { _ in
                let service = try TestService(
                    attaching: [:], loops: 2, extraArguments: arguments)
                defer { _ = try? service.stop() }
                return try service.statusKibibytes("VmRSS")
            }.min() ?? 0
        }
        let without = try resident([])
        let with = try resident(["--http", "tcp:127.0.0.1:\(try TestService.freePort())"])
        print("resident: \(without) KiB without the page, \(with) KiB with it")
        #expect(with - without < 1024)
    }

    /// Instructions of the loop for a write and a read, one after the other.
    private func instructions(_ arguments: [String]) throws -> Double {
        // What measures the loops would count.
        let service = try TestService(
            attaching: [:], loops: 1, extraArguments: arguments,
            environment: ["STILLPOINT_MEASURE_HOLDS": ""])
        defer { _ = try? service.stop() }
        let disk = service.directory.path("vm1.img")
        try makeSparseFile(disk, byteCount: 1 << 20)
        try Command.check(
            TestService.binary, ["device", "attach", "vm1", disk, "--control", service.controlPath])
        let client = try NBDClient(.unix(path: service.socketPath), export: "vm1")
        let bytes = [UInt8](repeating: 7, count: 4096)
        func ask(_ count: Int) throws {
            for number in 0..<count {
                let offset = UInt64(number % 64) * 4096
                try client.write(offset, bytes)
                _ = try client.read(offset, 4096)
            }
        }
        try ask(200)
        let trace = UnsafeMutablePointer<stillpoint_test_trace>.allocate(capacity: 1)
        trace.initialize(to: stillpoint_test_trace())
        defer { trace.deallocate() }
        let (thread, place) = (try service.thread(named: "loop-0"), Int(bitPattern: trace))
        let tracing = Background {
            stillpoint_test_count_instructions(UnsafeMutablePointer(bitPattern: place), thread)
        }
        while stillpoint_test_trace_has_begun(trace) == 0 { sched_yield() }
        // A step takes 30 microseconds.
        let count = isSoak ? 40 : 3
        try ask(count)
        stillpoint_test_trace_end(trace)
        // The thread makes the step after which the tracer sees the end.
        try ask(1)
        let failure = try tracing.value()
        guard failure == 0 else { throw TestFailure("ptrace: \(failure)") }
        return Double(trace.pointee.count) / Double(count)
    }

    @Test(.enabled(if: isRoot, "needs root, to count instructions of another process"))
    func `is no instruction of a request while nobody looks`() throws {
        func median(_ arguments: [String]) throws -> Double {
            try (0..<5).map { _ in try instructions(arguments) }.sorted()[2]
        }
        let without = try median([])
        let with = try median(["--http", "tcp:127.0.0.1:\(try TestService.freePort())"])
        print("a write and a read: \(without) instructions without the page, \(with) with it")
        #expect(abs(with - without) < 0.02 * without)
    }

    /// A viewer that costs little: real browsers run on machines of their own, this one is shared.
    private struct Viewer {
        private let connection: NBDClient

        init(_ port: UInt16) throws { connection = try NBDClient(.tcp(port: port)) }

        /// Reads what has come of an answer; its end may stay in the socket until the next one.
        func ask(_ path: String) throws {
            try connection.send(Array("GET \(path) HTTP/1.1\r\nHost: localhost\r\n\r\n".utf8))
            var piece = [UInt8](repeating: 0, count: 1 << 18)
            var flags: Int32 = 0
            while recv(connection.descriptor, &piece, piece.count, flags) > 0 {
                flags = Int32(MSG_DONTWAIT)
            }
        }
    }

    /// Ten who look until `isOver`.
    private func viewers(of harness: PageHarness, until isOver: Flag) -> [Background<Void>] {
        (0..<10).map { _ in
            Background {
                let (events, questions) = try (Viewer(harness.port), Viewer(harness.port))
                try events.ask("/v1/events")
                var round = 0
                while !isOver.isSet {
                    // As the page asks, faster: every second, and all at once at the begin.
                    if round % 5 == 0 {
                        for path in ["status", "health", "checkpoints", "copies"] {
                            try questions.ask("/v1/" + path)
                        }
                        try questions.ask("/v1/devices/vm1/changes/summary?cells=2048")
                    }
                    try questions.ask("/v1/activity")
                    round += 1
                    _ = poll(nil, 0, 1000)
                }
            }
        }
    }

    @Test func `is a few thousandths of a processor with ten who look`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let isOver = Flag()
        let begin = try (monotonicSeconds(), harness.service.processorSeconds())
        let others = viewers(of: harness, until: isOver)
        while monotonicSeconds() - begin.0 < 10 { _ = poll(nil, 0, 500) }
        let share =
            try (harness.service.processorSeconds() - begin.1) / (monotonicSeconds() - begin.0)
        isOver.set()
        for other in others { try other.value() }
        print("ten who look take \((share * 10000).rounded() / 100) % of a processor")
        // Of one processor: NBD's rate cannot lose more to the service.
        #expect(share < 0.03)
    }

    /// Processor time of this process so far, in seconds.
    private func ownSeconds() -> Double {
        var times = timespec()
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &times)
        return Double(times.tv_sec) + Double(times.tv_nsec) / 1e9
    }

    /// Operations per second that four clients get done.
    private func rate(_ harness: PageHarness, seconds: Double) throws -> Double {
        let end = monotonicSeconds() + seconds
        let clients = try (0..<4).map { index in
            let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
            return Background { () -> Int in
                var count = 0
                while monotonicSeconds() < end {
                    let offset = UInt64((count * 7 + index * 1024) % 8192) * 4096
                    if count % 2 == 0 {
                        try client.write(offset, [UInt8](repeating: 1, count: 4096))
                    } else {
                        _ = try client.read(offset, 4096)
                    }
                    count += 1
                }
                return count
            }
        }
        return Double(try clients.reduce(0) { $0 + (try $1.value()) }) / seconds
    }

    /// The median of what remains of the rate while `disturbance` goes on, over pairs of which every
    /// second one begins with it.
    private func remainder(
        _ harness: PageHarness, _ disturbance: (Flag) -> [Background<Void>]
    ) throws -> Double {
        func disturbedRate() throws -> Double {
            let isOver = Flag()
            let others = disturbance(isOver)
            // All have connected, and asked for what they ask for at the begin.
            _ = poll(nil, 0, 1000)
            let rate = try rate(harness, seconds: 3)
            isOver.set()
            for other in others { try other.value() }
            return rate
        }
        var ratios: [Double] = []
        for pair in 0..<11 {
            let early = pair % 2 == 0 ? nil : try disturbedRate()
            let alone = try rate(harness, seconds: 3)
            ratios.append(try (early ?? disturbedRate()) / alone)
        }
        print("NBD's rate beside it, pair by pair: \(ratios.map { ($0 * 1000).rounded() / 1000 })")
        // What of it the service takes itself, without NBD, and what its clients take beside it.
        let isOver = Flag()
        let others = disturbance(isOver)
        _ = poll(nil, 0, 1000)
        let begin = try (monotonicSeconds(), harness.service.processorSeconds(), ownSeconds())
        while monotonicSeconds() - begin.0 < 5 { _ = poll(nil, 0, 500) }
        let passed = monotonicSeconds() - begin.0
        let shares = try [
            harness.service.processorSeconds() - begin.1, ownSeconds() - begin.2,
        ].map { ($0 / passed * 10000).rounded() / 100 }
        isOver.set()
        for other in others { try other.value() }
        print("the service takes \(shares[0]) % of a processor for it, its clients \(shares[1]) %")
        return ratios.sorted()[ratios.count / 2]
    }

    @Test(.enabled(if: isSoak, "a measurement: run it with STILLPOINT_SOAK=1 on a quiet machine"))
    func `is at most 3 percent of NBD's rate with ten who look`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        _ = try rate(harness, seconds: 2)
        let left = try remainder(harness) { viewers(of: harness, until: $0) }
        #expect(left >= 0.97)
    }

    @Test(.enabled(if: isSoak, "a measurement: run it with STILLPOINT_SOAK=1 on a quiet machine"))
    func `is at most 5 percent of NBD's rate with those who only hold connections`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        _ = try rate(harness, seconds: 2)
        // Before the measurement: connecting costs the machine more than the service.
        var held = (0..<10_000).compactMap { _ in
            try? NBDClient(.tcp(port: harness.port), timeoutSeconds: 5)
        }
        let left = try remainder(harness) { isOver in
            (0..<200).map { _ in
                Background {
                    // A byte now and then, again and again.
                    while !isOver.isSet {
                        if let slow = try? NBDClient(.tcp(port: harness.port)) {
                            for byte in "GET /v1/status HTTP/1.1\r\nX: ".utf8 where !isOver.isSet {
                                guard (try? slow.send([byte])) != nil else { break }
                                _ = poll(nil, 0, 300)
                            }
                        }
                        // One that was refused tries again soon.
                        _ = poll(nil, 0, 300)
                    }
                }
            }
        }
        held.removeAll()
        #expect(left >= 0.95)
    }
}
