import Glibc
import RingIO
import Synchronization
import Testing

/// A schedule that expectations can drive.
private final class Lanes {
    private var schedule: LaneSchedule

    init(_ schedule: LaneSchedule) { self.schedule = schedule }

    /// Of so many jobs that arrive, how many are taken.
    func arrived(_ count: Int = 1, in lane: BlockingLane, isOwed: Bool = false) -> Int {
        var taken = 0
        for _ in 0..<count where schedule.arrived(in: lane, isOwed: isOwed) { taken += 1 }
        return taken
    }

    func threadFree() -> BlockingLane? { schedule.threadFree() }

    /// Gives threads to all that may run; returns how many.
    func runAll() -> Int {
        var count = 0
        while schedule.threadFree() != nil { count += 1 }
        return count
    }

    func ended(in lane: BlockingLane) { schedule.ended(in: lane) }

    var hasOnlyHanging: Bool { schedule.hasOnlyHanging }
    var threadCount: Int { schedule.threadCount }

    /// Gives the lane the threads that it wants; returns how many.
    func grow(_ lane: BlockingLane) -> Int {
        var count = 0
        while schedule.wantsThread(for: lane) {
            schedule.threadStarted(for: lane)
            count += 1
        }
        return count
    }
}

@Suite struct `Lanes of blocking work` {
    /// Each lane may run one job more than the one before, and have three wait.
    private func small() -> Lanes {
        Lanes(LaneSchedule { LaneSchedule.Bounds(threadCount: $0.rawValue + 1, waitingMax: 3) })
    }

    @Test func `take the pages of change maps before anything else`() {
        let lanes = small()
        for lane in BlockingLane.allCases.reversed() { #expect(lanes.arrived(in: lane) == 1) }
        var order: [BlockingLane] = []
        while let lane = lanes.threadFree() { order.append(lane) }
        #expect(order == BlockingLane.allCases)
        #expect(order.first == .pages)
    }

    @Test(arguments: BlockingLane.allCases)
    func `keep jobs that hang to the threads of their own`(hanging: BlockingLane) {
        let lanes = Lanes(.service())
        #expect(lanes.arrived(200, in: hanging) == 200)
        let running = lanes.runAll()
        #expect(running > 0 && running < lanes.threadCount)
        // Every other lane finds a thread.
        for lane in BlockingLane.allCases where lane != hanging {
            #expect(lanes.arrived(in: lane) == 1)
            #expect(lanes.threadFree() == lane)
        }
        // And those that hang get theirs again when one ends.
        #expect(lanes.threadFree() == nil)
        lanes.ended(in: hanging)
        #expect(lanes.threadFree() == hanging)
    }

    @Test func `have a thread for each job that may run`() {
        let lanes = Lanes(.service())
        for lane in BlockingLane.allCases { #expect(lanes.arrived(64, in: lane) == 64) }
        #expect(lanes.runAll() == lanes.threadCount)
    }

    @Test func `have more threads where those they have may hang, up to a bound`() {
        for lane in BlockingLane.allCases {
            let lanes = Lanes(.service())
            #expect(lanes.grow(lane) == 0)
            #expect(lanes.arrived(200, in: lane) == 200)
            let own = lanes.runAll()
            let more = lanes.grow(lane)
            #expect(lanes.runAll() == more)
            #expect((more > 0) == lane.mayHang, "\(lane)")
            #expect(own + more <= 64)
            // None of them is another lane's.
            for other in BlockingLane.allCases where other != lane {
                #expect(lanes.arrived(in: other) == 1)
                #expect(lanes.threadFree() == other)
            }
        }
    }

    @Test func `refuse what is too much, but not what is owed, and no refusal is final`() {
        let lanes = small()
        #expect(lanes.arrived(5, in: .paths) == 3)
        #expect(lanes.arrived(2, in: .paths, isOwed: true) == 2)
        #expect(lanes.arrived(5, in: .erasure) == 3)
        #expect(lanes.arrived(in: .erasure) == 0)
        #expect(lanes.runAll() > 0)
        #expect(lanes.arrived(in: .erasure) == 1)
    }

    @Test func `leave behind only jobs that may hang`() {
        let lanes = Lanes(.service())
        #expect(lanes.arrived(in: .paths) == 1 && lanes.arrived(in: .origins) == 1)
        #expect(lanes.hasOnlyHanging)
        #expect(lanes.arrived(in: .housekeeping) == 1)
        #expect(!lanes.hasOnlyHanging)
        #expect(lanes.runAll() == 3)
        #expect(!lanes.hasOnlyHanging)
        lanes.ended(in: .housekeeping)
        #expect(lanes.hasOnlyHanging)
    }
}

@Suite struct `A blocking pool` {
    @Test func `goes on with pages, storage and the service's own while every path hangs`()
        async throws
    {
        let pool = try BlockingPool.service()
        let release = Semaphore()
        let hanging = Mutex(0)
        for _ in 0..<40 {
            #expect(
                pool.submit(.paths) {
                    hanging.withLock { $0 += 1 }
                    release.wait()
                })
        }
        for lane in BlockingLane.allCases {
            #expect(await pool.run(lane) { lane } == lane)
        }
        // As many as may hang.
        for _ in 40..<100 {
            #expect(
                pool.submit(.paths) {
                    hanging.withLock { $0 += 1 }
                    release.wait()
                })
        }
        for lane in BlockingLane.allCases where lane != .paths {
            #expect(await pool.run(lane) { lane } == lane)
        }
        let outcome = await pool.run(.paths, limitNanoseconds: 1_000_000) { 1 }
        guard case .late = outcome else {
            Issue.record("a call behind paths that hang ends as \(outcome)")
            return
        }
        for _ in 0..<100 { release.signal() }
        #expect(await pool.run(.paths) { 2 } == 2)
        pool.close()
        #expect(hanging.withLock { $0 } == 100)
    }

    @Test func `closes what comes too late`() async throws {
        let pool = try BlockingPool(threadCount: 1)
        let (release, closed) = (Semaphore(), Semaphore())
        let outcome = await pool.run(
            .paths, limitNanoseconds: 1_000_000,
            whenLate: { (value: Int) in if value == 7 { closed.signal() } },
            {
                release.wait()
                return 7
            })
        guard case .late = outcome else {
            Issue.record("a call that hangs ends as \(outcome)")
            return
        }
        release.signal()
        closed.wait()
        pool.close()
        guard case .refused = await pool.run(.paths, limitNanoseconds: 1, { 1 }) else {
            Issue.record("a pool that has ended takes a call")
            return
        }
    }

    @Test func `ends although a path hangs for ever`() throws {
        let pool = try BlockingPool.service()
        let (begun, never) = (Semaphore(), Semaphore())
        #expect(
            pool.submit(.paths) {
                begun.signal()
                never.wait()
            })
        begun.wait()
        pool.close()
        let isTaken = pool.submit(.pages, {})
        #expect(!isTaken)
        never.signal()
    }

    @Test func `takes what is owed although its lane is full`() async throws {
        let pool = try BlockingPool(threadCount: 1, waitingMax: 1)
        let (begun, release, done) = (Semaphore(), Semaphore(), Semaphore())
        #expect(
            pool.submit {
                begun.signal()
                release.wait()
            })
        begun.wait()
        let (first, second) = (pool.submit {}, pool.submit {})
        #expect(first && !second)
        let isTaken = pool.require { done.signal() }
        #expect(isTaken)
        release.signal()
        done.wait()
        pool.close()
        let isTakenLate = pool.require {}
        #expect(!isTakenLate)
    }
}

@Suite struct `A mailbox that is full` {
    @Test func `keeps the messages of those who wait for an answer, in order, and blocks nobody`()
        async throws
    {
        let thread = try LoopThread(index: 0, configuration: LoopConfiguration())
        defer { thread.stopAndJoin() }
        let (begun, release) = (Semaphore(), Semaphore())
        #expect(
            thread.mailbox.post { _ in
                begun.signal()
                release.wait()
            })
        begun.wait()
        let seen = Mutex<[Int]>([])
        for number in 0..<LoopMailbox.capacity {
            #expect(thread.mailbox.post { _ in seen.withLock { $0.append(number) } })
        }
        #expect(!thread.mailbox.post { _ in })
        // The loop stands still: all of them return at once.
        let more = 3 * LoopMailbox.capacity
        for number in LoopMailbox.capacity..<more {
            #expect(thread.mailbox.postWhenRoom { _ in seen.withLock { $0.append(number) } })
        }
        // Nobody overtakes them.
        #expect(!thread.mailbox.post { _ in })
        release.signal()
        #expect(await thread.mailbox.run { $0.index } == 0)
        #expect(seen.withLock { $0 } == Array(0..<more))
    }
}
