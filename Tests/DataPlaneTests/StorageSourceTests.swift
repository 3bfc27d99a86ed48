import BlockModel
import CopyOnWrite
import DataPlane
import Glibc
import Storage
import Testing

private let mebibyte: UInt64 = 1 << 20
private let gibibyte: UInt64 = 1 << 30
private let extent = ExtentTable.extentByteCount

/// A source over a medium, threads and users that a test plans.
private struct Planned {
    let medium: PlannedMedium
    let jobs = PlannedJobs()
    let heard = Heard()
    let source: StorageSource

    init(_ medium: PlannedMedium, _ space: StorageSpace) {
        self.medium = medium
        source = StorageSource(
            name: "planned", medium: medium, space: space, jobs: jobs,
            notify: { [heard] in heard.notice($0) })
        // A device beside whoever opened it, who leaves.
        source.userAdded()
        source.userAsksNoMore()
        source.drained()
    }

    init(
        file limit: UInt64, firstStep: UInt64, stepMax: UInt64 = gibibyte, free: UInt64,
        size: UInt64, given: UInt64 = .max
    ) {
        let medium = PlannedMedium(room: FilesystemRoom(free: free, size: size))
        medium.state.withLock { $0.givenByteCount = given }
        self.init(
            medium,
            StorageSpace(
                growingTo: limit, firstStep: firstStep, growthStepMax: stepMax,
                extentByteCount: extent))
    }

    init(blockDevice extents: UInt64) {
        self.init(
            PlannedMedium(outlivesUs: true),
            StorageSpace(fixed: extents * extent, extentByteCount: extent))
    }

    func want() -> Result<UInt64, Fault>? {
        source.extentWanted(for: .preserving, isFirst: true) { [heard] in heard.answer($0) }
    }

    /// Takes extents that are there, and writes to them.
    func take(_ count: Int) throws -> [UInt64] {
        try (0..<count).map { _ in
            let offset = try #require(try want()?.get())
            medium.written(offset, byteCount: extent)
            return offset
        }
    }

    /// The same with threads that come at once.
    func collect(_ count: Int) throws -> [UInt64] {
        try (0..<count).map { _ in
            if let answer = want() { return try answer.get() }
            jobs.run()
            return try #require(heard.answers.last).get()
        }
    }

    /// The device is done with the source.
    func leave() {
        source.userAsksNoMore()
        source.drained()
    }
}

@Suite struct `A source of storage` {
    @Test(arguments: [true, false])
    func `whose filesystem has 900 MiB and whose limit is 20G uses what there is`(
        reportsFreeSpace: Bool
    ) throws {
        let planned = Planned(
            file: 20 * gibibyte, firstStep: gibibyte, free: 900 * mebibyte, size: gibibyte,
            given: 900 * mebibyte)
        if !reportsFreeSpace { planned.medium.state.withLock { $0.room = nil } }
        planned.jobs.run()
        let kept = reportsFreeSpace ? gibibyte / 20 : 0
        let expected = (900 * mebibyte - kept) / extent * extent
        #expect(planned.source.report.capacity == expected)
        // What a refused call had allocated is the filesystem's again.
        #expect(planned.medium.state.withLock { UInt64($0.reserved.count) } * mebibyte == expected)
        let offsets = try planned.take(Int(expected / extent))
        #expect(Set(offsets).count == offsets.count)
        #expect(planned.want() == nil)
        planned.jobs.run()
        #expect(planned.heard.answers == [.failure(.noSpace)])
        #expect(planned.source.report.bound != .limit)
        // Somebody deletes a file.
        planned.medium.state.withLock { state in
            state.givenByteCount += 100 * mebibyte
            state.room?.free += 100 * mebibyte
        }
        #expect(planned.want() == nil)
        planned.jobs.run()
        #expect(planned.heard.answers.last == .success(expected))
    }

    @Test func `that can have no thread is asked again, and calls nothing full`() throws {
        let planned = Planned(
            file: gibibyte, firstStep: 64 * mebibyte, free: 10 * gibibyte, size: 10 * gibibyte)
        planned.jobs.run()
        _ = try planned.take(Int(planned.source.report.capacity / extent))
        planned.jobs.run()
        planned.jobs.isRefusing = true
        while case .success = planned.want() {}
        #expect(planned.want() == .failure(.wouldBlock))
        planned.jobs.isRefusing = false
        #expect(planned.want() == nil)
        planned.jobs.run()
        #expect(planned.heard.answers.count == 1)
        #expect(throws: Never.self) { try planned.heard.answers[0].get() }
    }

    @Test func `breaks growth off and answers those who wait when its last user leaves`() {
        let planned = Planned(
            file: gibibyte, firstStep: 64 * mebibyte, free: 10 * gibibyte, size: 10 * gibibyte)
        #expect(planned.want() == nil)
        planned.source.userAsksNoMore()
        planned.jobs.run()
        #expect(planned.heard.answers == [.failure(.noSpace)])
        planned.source.drained()
        planned.jobs.run()
        #expect(planned.medium.state.withLock { $0.isClosed })
        #expect(planned.medium.state.withLock { $0.reserved.isEmpty })
    }

    @Test func `on a block device is erased before it is granted again and before it is closed`()
        throws
    {
        let planned = Planned(blockDevice: 3)
        let offsets = try planned.take(3)
        planned.source.extentReleased(byteOffset: offsets[1])
        #expect(planned.want() == nil)
        planned.jobs.run()
        #expect(planned.heard.answers == [.success(offsets[1])])
        #expect(planned.medium.state.withLock { !$0.dirty.contains(offsets[1]) })
        for offset in offsets {
            planned.medium.written(offset, byteCount: extent)
            planned.source.extentReleased(byteOffset: offset)
        }
        planned.leave()
        #expect(planned.medium.state.withLock { !$0.isClosed })
        planned.jobs.run()
        #expect(planned.medium.state.withLock { $0.dirtyAtClose } == 0)
        #expect(!planned.heard.notices.contains { $0.hasPrefix("not erased") })
    }

    /// More than the pool's queue takes: each was a job of its own, and those refused stayed as
    /// they were.
    @Test(arguments: [false, true])
    func `with 10,000 extents is erased in large pieces, whether a thread can be had or not`(
        isRefusing: Bool
    ) throws {
        let planned = Planned(blockDevice: 10_000)
        let offsets = try planned.take(10_000)
        planned.jobs.isRefusing = isRefusing
        for offset in offsets.shuffled() { planned.source.extentReleased(byteOffset: offset) }
        planned.leave()
        #expect(planned.jobs.run() <= 2)
        #expect(planned.medium.state.withLock { $0.dirtyAtClose } == 0)
        #expect(planned.medium.state.withLock { $0.erasures.count } <= 10_000 / 16 + 16)
    }

    @Test func `that cannot be erased in one place is erased elsewhere, and says so at the end`()
        throws
    {
        let planned = Planned(blockDevice: 8)
        let offsets = try planned.take(8)
        planned.medium.state.withLock { $0.eraseFailures = [5 * extent: .max, 2 * extent: 2] }
        for offset in offsets { planned.source.extentReleased(byteOffset: offset) }
        planned.jobs.run()
        // Six are granted again, the two that failed are not.
        var again: [UInt64] = []
        while case .success(let offset) = planned.want() { again.append(offset) }
        #expect(again.sorted() == [0, 1, 3, 4, 6, 7].map { $0 * extent })
        #expect(planned.want() == .failure(.noSpace))
        #expect(planned.heard.notices.allSatisfy { $0.hasPrefix("low") })
        for offset in again { planned.source.extentReleased(byteOffset: offset) }
        planned.leave()
        planned.jobs.run()
        // The second try at the end cleans one of them.
        #expect(planned.heard.notices.last == "not erased 4M errno 5")
        #expect(planned.medium.state.withLock { $0.dirtyAtClose } == Int(extent / mebibyte))
    }

    @Test func `in a file reserves what it punched before it grants it again`() throws {
        let planned = Planned(
            file: gibibyte, firstStep: 16 * mebibyte, stepMax: 16 * mebibyte, free: 10 * gibibyte,
            size: 10 * gibibyte)
        let offsets = try planned.collect(100)
        planned.jobs.run()
        let before = planned.medium.state.withLock { $0.reserved.count }
        for offset in offsets { planned.source.extentReleased(byteOffset: offset) }
        planned.jobs.run()
        #expect(planned.medium.state.withLock { $0.reserved.count } < before)
        let granted = try planned.collect(100)
        #expect(Set(granted).count == 100)
        let reserved = planned.medium.state.withLock { $0.reserved }
        #expect(granted.allSatisfy { reserved.contains($0) && reserved.contains($0 + mebibyte) })
    }

    @Test func `in a file whose punch fails goes on with what it has`() throws {
        let planned = Planned(
            file: 8 * extent, firstStep: extent, stepMax: extent, free: 10 * gibibyte,
            size: 10 * gibibyte)
        let offsets = try planned.collect(8)
        planned.medium.state.withLock { state in
            for offset in offsets { state.eraseFailures[offset] = .max }
        }
        for offset in offsets { planned.source.extentReleased(byteOffset: offset) }
        planned.jobs.run()
        #expect(try planned.collect(8).sorted() == offsets.sorted())
        planned.leave()
        planned.jobs.run()
        #expect(!planned.heard.notices.contains { $0.hasPrefix("not erased") })
        #expect(planned.medium.state.withLock { $0.isClosed })
    }
}
