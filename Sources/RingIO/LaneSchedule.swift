// Which job of the blocking pool runs next. Decides only: jobs and threads are the pool's.
//
// Invariants
// - A lane never has more jobs running than it may; so a call that hangs keeps the threads of its
//   own lane, and those of the others stay free for theirs.
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
        /// Jobs that run at a time.
        package var runningMax: Int
        /// Jobs that wait before one is refused.
        package var waitingMax: Int

        package init(runningMax: Int, waitingMax: Int) {
            self.runningMax = runningMax
            self.waitingMax = waitingMax
        }
    }

    private struct Lane {
        var bounds: Bounds
        var running = 0
        var waiting = 0
    }

    private var lanes: [Lane]

    /// `bounds`: of each lane, each with room for one job at least.
    package init(_ bounds: (BlockingLane) -> Bounds) {
        lanes = BlockingLane.allCases.map { Lane(bounds: bounds($0)) }
        for lane in lanes {
            precondition(lane.bounds.runningMax > 0, "each lane can run a job")
        }
    }

    /// The lanes of the service: as many threads as jobs may run at a time, so that none waits for
    /// another lane's.
    package static func service() -> LaneSchedule {
        LaneSchedule { lane in
            switch lane {
            // A device asks for its pages in one job at a time.
            case .pages: Bounds(runningMax: 2, waitingMax: 8192)
            case .growth: Bounds(runningMax: 2, waitingMax: 8192)
            case .erasure: Bounds(runningMax: 2, waitingMax: 8192)
            // An origin has one job at a time.
            case .origins: Bounds(runningMax: 4, waitingMax: 8192)
            case .housekeeping: Bounds(runningMax: 3, waitingMax: 8192)
            case .paths: Bounds(runningMax: 4, waitingMax: 256)
            case .storagePaths, .surveys: Bounds(runningMax: 3, waitingMax: 256)
            }
        }
    }

    /// Jobs that can run at a time.
    package var runningMax: Int { lanes.reduce(0) { $0 + $1.bounds.runningMax } }

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
            guard state.waiting > 0, state.running < state.bounds.runningMax else { continue }
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
