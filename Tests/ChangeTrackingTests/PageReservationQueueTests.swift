import BlockModel
import ChangeTracking
import Testing

/// TestQueue that expectations can drive.
private final class TestQueue {
    private var queue = PageReservationQueue()
    private let pageCount: UInt64
    /// Pages that were made.
    var there: Set<UInt64> = []

    init(pageCount: UInt64 = 1000) { self.pageCount = pageCount }

    var hasJob: Bool { queue.hasJob }

    func wanted(_ pages: UInt64...) { for page in pages { queue.wanted(page) } }

    func nextJob() -> PageReservationQueue.Job? {
        queue.nextJob(pageCount: pageCount) { there.contains($0) }
    }

    /// Ends the job under way: what it was about is there.
    func ended(_ job: PageReservationQueue.Job?) {
        there.formUnion(job?.pages ?? [])
        queue.jobEnded()
    }

    func forgetAll() { queue.forgetAll() }
}

@Suite struct `Pages of a change map that are wanted` {
    @Test func `are made in the order in which they were asked for, one job at a time`() {
        let queue = TestQueue()
        queue.wanted(9, 3, 9, 700, 3)
        let job = queue.nextJob()
        #expect(job == PageReservationQueue.Job(pages: [9, 3, 700], isAhead: false))
        #expect(queue.hasJob)
        // One that is under way is not asked for again, another waits for the end of the job.
        queue.wanted(3, 20)
        #expect(queue.nextJob() == nil)
        queue.ended(job)
        let next = queue.nextJob()
        #expect(next?.pages == [20])
        queue.ended(next)
        #expect(queue.nextJob() == nil && !queue.hasJob)
    }

    @Test func `are bounded in each job`() {
        let queue = TestQueue(pageCount: 7000)
        for page in 0..<UInt64(PageReservationQueue.batchMax + 1) { queue.wanted(page * 7) }
        let job = queue.nextJob()
        #expect(job?.pages.count == PageReservationQueue.batchMax)
        queue.ended(job)
        #expect(queue.nextJob()?.pages.count == 1)
    }

    @Test func `are made ahead of who writes on and on, who then hardly ever waits`() {
        let queue = TestQueue()
        var waits = 0
        for page in 0..<UInt64(500) where !queue.there.contains(page) {
            waits += 1
            queue.wanted(page)
            let job = queue.nextJob()
            #expect(job == PageReservationQueue.Job(pages: [page], isAhead: false))
            queue.ended(job)
            guard let ahead = queue.nextJob() else { continue }
            #expect(ahead.isAhead && ahead.pages.count <= PageReservationQueue.aheadMax)
            queue.ended(ahead)
        }
        #expect(waits < 40)
        #expect(queue.there.count < 500 + Int(PageReservationQueue.aheadMax))
    }

    @Test func `are not made ahead of writes here and there, nor beyond the end`() {
        let queue = TestQueue()
        for page in 0..<UInt64(30) {
            queue.wanted(page * 30)
            queue.ended(queue.nextJob())
            #expect(queue.nextJob() == nil)
        }
        #expect(queue.there.count == 30)
        let last = TestQueue()
        last.there = [998]
        last.wanted(999)
        last.ended(last.nextJob())
        #expect(last.nextJob() == nil)
    }

    @Test func `come before those that nobody waits for yet`() {
        let queue = TestQueue()
        queue.there = [4]
        queue.wanted(5)
        let job = queue.nextJob()
        queue.wanted(800)
        queue.ended(job)
        #expect(queue.nextJob() == PageReservationQueue.Job(pages: [800], isAhead: false))
    }

    @Test func `are forgotten when tracking ends`() {
        let queue = TestQueue()
        queue.wanted(5)
        queue.forgetAll()
        #expect(queue.nextJob() == nil)
        queue.wanted(5)
        #expect(queue.nextJob()?.pages == [5])
    }
}
