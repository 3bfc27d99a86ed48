// Which job of the blocking pool runs next. Decides only: jobs and threads are the pool's.
//
// Invariants
// - A lane never has more jobs running than it has threads; so a call that hangs keeps a thread of
//   its own lane, and those of the others stay free for theirs.
// - A lane whose jobs may hang gets more threads when all of its own are held, up to its bound:
//   what does not hang continues beside what does.
// - A free thread takes the oldest job of the first lane, in the order of `BlockingLane`, that has
//   one and may run one more.
// - A lane that is full refuses; what is owed is taken all the same: who says it has nothing else
//   that could be done instead, and is bounded elsewhere.

/// What a job of the blocking pool is about. The first come first.
package enum BlockingLane: Int, CaseIterable, Sendable {
    /// Pages of change maps are made resident: writers wait for them.
    case pages
    /// Storage grows, and is made resident: writers may wait for it.
    case growth
    /// Storage is erased and closed.
    case erasure
    /// Questions to origins that are open: holes, sizes. One that is gone may not answer.
    case origins
    /// The service's own files, threads and processes.
    case housekeeping
    /// Paths of origins that users name, and those of storage. What they name may hang.
    case paths
    case storagePaths
    /// Looks at what is mounted, and at programs that users name: the same.
    case surveys

    /// Jobs of it may never end: nobody can wait for them without a limit.
    package var mayHang: Bool {
        switch self {
        case .origins, .paths, .storagePaths, .surveys: true
        case .pages, .growth, .erasure, .housekeeping: false
        }
    }
}

/// The order of the jobs of a blocking pool; see the head of this file.
package struct LaneSchedule {
    /// How much of a lane there may be.
    package struct Bounds: Sendable {
        /// Threads that it has at first, and at most.
        package var threadCount: Int
        package var threadCountMax: Int
        /// Jobs that wait before one is refused.
        package var waitingMax: Int

        package init(threadCount: Int, threadCountMax: Int? = nil, waitingMax: Int) {
            self.threadCount = threadCount
            self.threadCountMax = threadCountMax ?? threadCount
            self.waitingMax = waitingMax
        }
    }

    private struct Lane {
        var bounds: Bounds
        var threadCount: Int
        var running = 0
        var waiting = 0

        var wantsThread: Bool {
            running + waiting > threadCount && threadCount < bounds.threadCountMax
        }
    }

    private var lanes: [Lane]

    /// `bounds`: of each lane, each with room for one job at least.
    package init(_ bounds: (BlockingLane) -> Bounds) {
        lanes = BlockingLane.allCases.map { lane in
            let bounds = bounds(lane)
            return Lane(bounds: bounds, threadCount: bounds.threadCount)
        }
        for lane in lanes { precondition(lane.threadCount > 0, "each lane can run a job") }
    }

    /// The lanes of the service.
    package static func service() -> LaneSchedule {
        LaneSchedule { lane in
            switch lane {
            // A device asks for its pages in one job at a time.
            case .pages: Bounds(threadCount: 2, waitingMax: 8192)
            case .growth: Bounds(threadCount: 2, waitingMax: 8192)
            case .erasure: Bounds(threadCount: 2, waitingMax: 8192)
            // An origin has one job at a time, and may hang with all others of its server.
            case .origins: Bounds(threadCount: 4, threadCountMax: 64, waitingMax: 8192)
            case .housekeeping: Bounds(threadCount: 3, waitingMax: 8192)
            case .paths: Bounds(threadCount: 2, threadCountMax: 64, waitingMax: 256)
            case .storagePaths, .surveys:
                Bounds(threadCount: 2, threadCountMax: 16, waitingMax: 256)
            }
        }
    }

    /// Threads of all lanes now.
    package var threadCount: Int { lanes.reduce(0) { $0 + $1.threadCount } }

    /// True when the lane should have another thread: start one, and say `threadStarted` then.
    package func wantsThread(for lane: BlockingLane) -> Bool { lanes[lane.rawValue].wantsThread }

    /// The lane has another thread.
    package mutating func threadStarted(for lane: BlockingLane) {
        precondition(
            lanes[lane.rawValue].threadCount < lanes[lane.rawValue].bounds.threadCountMax,
            "a lane has at most its bound of threads")
        lanes[lane.rawValue].threadCount += 1
    }

    /// A job arrived: true when it waits now. `isOwed`: it is taken however many wait.
    package mutating func arrived(in lane: BlockingLane, isOwed: Bool = false) -> Bool {
        guard isOwed || lanes[lane.rawValue].waiting < lanes[lane.rawValue].bounds.waitingMax
        else { return false }
        lanes[lane.rawValue].waiting += 1
        return true
    }

    /// A thread is free: the lane whose oldest job it runs now; nil when there is nothing for it.
    package mutating func threadFree() -> BlockingLane? {
        for lane in BlockingLane.allCases {
            let state = lanes[lane.rawValue]
            guard state.waiting > 0, state.running < state.threadCount else { continue }
            lanes[lane.rawValue].waiting -= 1
            lanes[lane.rawValue].running += 1
            return lane
        }
        return nil
    }

    /// A job ended.
    package mutating func ended(in lane: BlockingLane) {
        precondition(lanes[lane.rawValue].running > 0, "a job ends once")
        lanes[lane.rawValue].running -= 1
    }

    /// True when all that waits or runs is in lanes whose jobs may never end.
    package var hasOnlyHanging: Bool {
        BlockingLane.allCases.allSatisfy { lane in
            let state = lanes[lane.rawValue]
            return lane.mayHang ? true : state.waiting == 0 && state.running == 0
        }
    }
}
