// Which pages of a change map are made resident next. Decides only; they are made off
// the loop, one job at a time.
//
// Invariants
// - What a write waits for comes before what nobody waits for yet, in the order in which it was
//   asked.
// - A page is asked for once at a time, and again only when it is wanted again.
// - Ahead of need at most `aheadMax` pages are made, and only behind a page that follows one which
//   is there: writes here and there get no more memory than they touch.

/// The pages of one device's map that are wanted. Confined to its loop.
package struct PageReservationQueue {
    /// Pages of one job: the first waiter waits for all of them.
    package static let batchMax = 64
    /// Pages made ahead of need: half a gibibyte of the device.
    package static let aheadMax: UInt64 = 16

    /// What to make resident in one step.
    package struct Job: Equatable {
        package var pages: [UInt64]
        /// Nobody waits for them.
        package var isAhead: Bool

        package init(pages: [UInt64], isAhead: Bool) {
            self.pages = pages
            self.isAhead = isAhead
        }
    }

    private var waiting: [UInt64] = []
    private var isWaiting: Set<UInt64> = []
    /// The pages of the job that is under way.
    private var underWay: Job?
    /// Where writers are expected next, and how many pages of it are to be made.
    private var aheadFrom: UInt64 = 0
    private var aheadCount: UInt64 = 0
    /// How far ahead the last run was made: it doubles as long as writers continue.
    private var reach: UInt64 = 0

    package init() {}

    /// A job is under way.
    package var hasJob: Bool { underWay != nil }

    /// A write waits for `page`.
    package mutating func wanted(_ page: UInt64) {
        if let underWay, !underWay.isAhead, underWay.pages.contains(page) { return }
        guard isWaiting.insert(page).inserted else { return }
        waiting.append(page)
    }

    /// The next job; nil when one is under way or nothing is wanted. The map has `pageCount` pages.
    package mutating func nextJob(pageCount: UInt64, isReserved: (UInt64) -> Bool) -> Job? {
        guard underWay == nil else { return nil }
        if !waiting.isEmpty {
            let pages = Array(waiting.prefix(Self.batchMax))
            waiting.removeFirst(pages.count)
            for page in pages { isWaiting.remove(page) }
            lookAhead(of: pages[pages.count - 1]) { isReserved($0) || pages.contains($0) }
            underWay = Job(pages: pages, isAhead: false)
            return underWay
        }
        let end = min(aheadFrom + aheadCount, pageCount)
        aheadCount = 0
        guard aheadFrom < end else { return nil }
        let pages = (aheadFrom..<end).filter { !isReserved($0) }
        guard !pages.isEmpty else { return nil }
        underWay = Job(pages: pages, isAhead: true)
        return underWay
    }

    private mutating func lookAhead(of page: UInt64, _ isThere: (UInt64) -> Bool) {
        guard page > 0, isThere(page - 1) else {
            reach = 0
            return
        }
        reach = min(max(reach * 2, 1), Self.aheadMax)
        aheadFrom = page + 1
        aheadCount = reach
    }

    /// The job under way has ended.
    package mutating func jobEnded() { underWay = nil }

    /// Nothing is wanted any more.
    package mutating func forgetAll() {
        waiting = []
        isWaiting = []
        aheadCount = 0
    }
}
