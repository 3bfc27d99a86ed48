import RingIO
import Testing

@Suite struct `Operations of files` {
    private let interval = OperationAges.interval

    @Test func `that end in time never count as hanging, however many there are`() {
        var ages = OperationAges()
        var groups: [Int] = []
        for look in 0..<100 as Range<UInt64> {
            for group in groups { ages.ended(group) }
            groups = (0..<1000).map { _ in ages.began() }
            let changed = ages.look(now: look * interval)
            #expect(!changed)
        }
        #expect(ages.hangingCount == 0)
        #expect(ages.count == 1000)
    }

    @Test func `hang when they were there at two looks, and until they end`() {
        var ages = OperationAges()
        let hanging = (0..<8).map { _ in ages.began() }
        let changed2 = ages.look(now: 0)
        #expect(!changed2)
        #expect(ages.nextLook == interval)
        let later = ages.began()
        let changed3 = ages.look(now: interval)
        #expect(changed3)
        #expect(ages.hangingCount == 8)
        ages.ended(later)
        let changed4 = ages.look(now: 2 * interval)
        #expect(!changed4)
        for group in hanging { ages.ended(group) }
        let changed5 = ages.look(now: 3 * interval)
        #expect(changed5)
        #expect(ages.hangingCount == 0 && ages.count == 0)
    }

    @Test func `of several disks that die one after the other are all seen to hang`() {
        var ages = OperationAges()
        var expected = 0
        for look in 0..<12 as Range<UInt64> {
            for _ in 0..<5 { _ = ages.began() }
            _ = ages.look(now: look * interval)
            #expect(ages.hangingCount == expected)
            expected += 5
        }
    }

    @Test func `all count as hanging once they cannot be told apart any more`() {
        var ages = OperationAges()
        for look in 0..<40 as Range<UInt64> {
            _ = ages.began()
            _ = ages.look(now: look * interval)
        }
        #expect(ages.hangingCount == 40)
        // As soon as a group is empty they are told apart again.
        ages.ended(0)
        _ = ages.look(now: 40 * interval)
        _ = ages.look(now: 41 * interval)
        #expect(ages.hangingCount == 39)
        let young = ages.began()
        #expect(young == 0)
    }
}
