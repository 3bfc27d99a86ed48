import BlockModel
import ChangeTracking
import Testing

/// Wishes that expectations can drive.
private final class Wishes {
    private var wishes = PageWishes()
    private let pageCount: UInt64
    /// Pages that were made.
    var there: Set<UInt64> = []

    init(pageCount: UInt64 = 1000) { self.pageCount = pageCount }

    var hasJob: Bool { wishes.hasJob }

    func wanted(_ pages: UInt64...) { for page in pages { wishes.wanted(page) } }

    func nextJob() -> PageWishes.Job? {
        wishes.nextJob(pageCount: pageCount) { there.contains($0) }
    }

    /// Ends the job under way: what it was about is there.
    func ended(_ job: PageWishes.Job?) {
        there.formUnion(job?.pages ?? [])
        wishes.jobEnded()
    }

    func forgetAll() { wishes.forgetAll() }
}

@Suite struct `Pages of a change map that are wanted` {
    @Test func `are made in the order in which they were asked for, one job at a time`() {
        let wishes = Wishes()
        wishes.wanted(9, 3, 9, 700, 3)
        let job = wishes.nextJob()
        #expect(job == PageWishes.Job(pages: [9, 3, 700], isAhead: false))
        #expect(wishes.hasJob)
        // One that is under way is not asked for again, another waits for the end of the job.
        wishes.wanted(3, 20)
        #expect(wishes.nextJob() == nil)
        wishes.ended(job)
        let next = wishes.nextJob()
        #expect(next?.pages == [20])
        wishes.ended(next)
        #expect(wishes.nextJob() == nil && !wishes.hasJob)
    }

    @Test func `are bounded in each job`() {
        let wishes = Wishes(pageCount: 7000)
        for page in 0..<UInt64(PageWishes.batchMax + 1) { wishes.wanted(page * 7) }
        let job = wishes.nextJob()
        #expect(job?.pages.count == PageWishes.batchMax)
        wishes.ended(job)
        #expect(wishes.nextJob()?.pages.count == 1)
    }

    @Test func `are made ahead of who writes on and on, who then hardly ever waits`() {
        let wishes = Wishes()
        var waits = 0
        for page in 0..<UInt64(500) where !wishes.there.contains(page) {
            waits += 1
            wishes.wanted(page)
            let job = wishes.nextJob()
            #expect(job == PageWishes.Job(pages: [page], isAhead: false))
            wishes.ended(job)
            guard let ahead = wishes.nextJob() else { continue }
            #expect(ahead.isAhead && ahead.pages.count <= PageWishes.aheadMax)
            wishes.ended(ahead)
        }
        #expect(waits < 40)
        #expect(wishes.there.count < 500 + Int(PageWishes.aheadMax))
    }

    @Test func `are not made ahead of writes here and there, nor beyond the end`() {
        let wishes = Wishes()
        for page in 0..<UInt64(30) {
            wishes.wanted(page * 30)
            wishes.ended(wishes.nextJob())
            #expect(wishes.nextJob() == nil)
        }
        #expect(wishes.there.count == 30)
        let last = Wishes()
        last.there = [998]
        last.wanted(999)
        last.ended(last.nextJob())
        #expect(last.nextJob() == nil)
    }

    @Test func `come before those that nobody waits for yet`() {
        let wishes = Wishes()
        wishes.there = [4]
        wishes.wanted(5)
        let job = wishes.nextJob()
        wishes.wanted(800)
        wishes.ended(job)
        #expect(wishes.nextJob() == PageWishes.Job(pages: [800], isAhead: false))
    }

    @Test func `are forgotten when tracking ends`() {
        let wishes = Wishes()
        wishes.wanted(5)
        wishes.forgetAll()
        #expect(wishes.nextJob() == nil)
        wishes.wanted(5)
        #expect(wishes.nextJob()?.pages == [5])
    }
}
