import BlockModel
import CopyOnWrite
import Testing

private let extent = ExtentTable.extentByteCount

/// A file that grows in steps of at most `step` extents.
private func file(limit: UInt64, first: UInt64 = 4, step: UInt64 = 4) -> StorageSpace {
    StorageSpace(
        growingTo: limit * extent, firstStep: first * extent, growthStepMax: step * extent,
        extentByteCount: extent)
}

private func fixed(_ count: UInt64) -> StorageSpace {
    StorageSpace(fixed: count * extent, extentByteCount: extent)
}

extension StorageSpace {
    /// Performs the growth that is due on a filesystem that gives `room` bytes; the bytes got, or
    /// nil when none was due.
    fileprivate mutating func grow(room: UInt64 = .max / 2) -> UInt64? {
        guard var run = growthDue() else { return nil }
        var left = room
        let before = capacity
        while let piece = run.next(room: left) {
            left -= piece.byteCount
            run.succeeded(piece)
        }
        growthEnded(run)
        return capacity - before
    }

    /// Grants extents until there are none; their offsets.
    fileprivate mutating func takeAll(_ purpose: StoragePurpose = .preserving) -> [UInt64] {
        var offsets: [UInt64] = []
        while case .granted(let offset) = extentWanted(for: purpose) { offsets.append(offset) }
        return offsets
    }

    fileprivate mutating func eraseAll(isClean: Bool = true) {
        for offset in erasureDue() ?? [] {
            erased(ByteRange(offset: offset, length: extentByteCount), isClean: isClean)
        }
        erasureEnded()
    }
}

@Suite struct `Storage space` {
    @Test func `it grows in steps, warns once and stops at its limit`() {
        var space = file(limit: 20)
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        #expect(did { space.grow() == 4 * extent })
        #expect(did { space.growthDue() == nil }, "there is enough ahead")
        var granted: UInt64 = 0
        var warnings = 0
        while granted < 20 {
            guard case .granted(let offset) = space.extentWanted(for: .preserving) else {
                Issue.record("growth comes ahead of need")
                return
            }
            #expect(offset == granted * extent)
            granted += 1
            _ = space.grow()
            if space.lowSpaceDue() {
                warnings += 1
                #expect(space.availableByteCount >= 3 * extent, "the warning comes in time")
            }
        }
        #expect(warnings == 1)
        #expect(did { space.extentWanted(for: .preserving) == .full })
        #expect(space.bound == .limit)
        space.extentReleased(byteOffset: 4 * extent)
        #expect(did { space.extentWanted(for: .preserving) == .granted(byteOffset: 4 * extent) })
    }

    @Test func `steps double while they succeed, up to the largest`() {
        var space = file(limit: 1000, first: 2, step: 10)
        var steps: [UInt64] = []
        while steps.count < 5 {
            _ = space.takeAll()
            steps.append((space.grow() ?? 0) / extent)
        }
        #expect(steps == [2, 4, 8, 10, 10])
    }

    @Test func `a step that falls short is used as far as it went, and halved`() {
        var space = file(limit: 1000, first: 64, step: 64)
        #expect(did { space.grow(room: 21 * extent + 5) == 21 * extent })
        #expect(space.capacity == 21 * extent)
        #expect(space.growthStep == 32 * extent)
        #expect(space.bound == .filesystem(5))
        #expect(did { space.takeAll().count == 21 })
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        // The filesystem has room again by now.
        #expect(did { space.grow() == 32 * extent })
        #expect(space.growthStep == 64 * extent)
        #expect(did { space.extentAwaited(for: .preserving) == .granted(byteOffset: 21 * extent) })
    }

    @Test func `a refusal holds for those who waited, and is tried again for the next`() {
        var space = file(limit: 9, first: 1, step: 1)
        #expect(did { space.grow() == extent })
        #expect(did { space.takeAll().count == 1 })
        #expect(did { space.grow(room: 0) == 0 })
        #expect(did { space.extentAwaited(for: .preserving) == .full })
        #expect(did { space.growthDue() == nil }, "ahead of need it is not tried for ever")
        #expect(space.availableByteCount == 0)
        #expect(space.bound == .filesystem(0))
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        #expect(did { space.grow() == extent })
        #expect(did { space.extentAwaited(for: .preserving) == .granted(byteOffset: extent) })
    }

    @Test func `growth that nobody could be found for is due again, and nothing is full`() throws {
        var space = file(limit: 9)
        let run = space.growthDue()
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        space.growthPutOff(try #require(run))
        #expect(!space.isWorking)
        #expect(did { space.extentAwaited(for: .preserving) == .coming })
        #expect(did { space.grow() == 4 * extent })
    }

    @Test func `an extent of a file that was punched is reserved before it is granted again`() {
        var space = file(limit: 100, first: 2, step: 2)
        var offsets: [UInt64] = []
        while offsets.count < 20 {
            offsets += space.takeAll()
            _ = space.grow()
        }
        let capacity = space.capacity
        for offset in offsets { space.extentReleased(byteOffset: offset) }
        space.eraseAll()
        #expect(space.capacity < capacity, "what was punched is the filesystem's again")
        #expect(space.capacity >= 2 * extent, "a step's worth stays reserved")
        let ready = space.takeAll().count
        #expect(UInt64(ready) * extent == space.capacity)
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        guard var run = space.growthDue() else {
            Issue.record("the holes are to be reserved")
            return
        }
        let piece = run.next(room: nil)
        #expect(piece.map { offsets.contains($0.byteOffset) && !$0.isTail } == true)
        if let piece { run.succeeded(piece) }
        space.growthEnded(run)
        #expect(did { space.extentAwaited(for: .preserving) != .full })
    }

    @Test func `overlays leave a tenth for preserving`() {
        var space = fixed(20)
        #expect(did { space.takeAll(.overlay).count == 18 })
        #expect(did { space.extentWanted(for: .preserving) == .granted(byteOffset: 18 * extent) })
    }

    @Test func `a tenth of what the filesystem can give is low space`() {
        var space = file(limit: 10_000, first: 4, step: 4)
        var room = 40 * extent
        var warningAt: UInt64?
        while let got = space.grow(room: room) {
            room -= got
            _ = space.takeAll()
            if warningAt == nil, space.lowSpaceDue() { warningAt = space.availableByteCount }
            if got == 0 { break }
        }
        #expect(warningAt.map { $0 <= 4 * extent } == true)
    }

    @Test func `what came back to a block device is granted when it is erased, never before`() {
        var space = fixed(2)
        #expect(did { space.takeAll() == [0, extent] })
        #expect(space.bound == .size)
        space.extentReleased(byteOffset: 0)
        #expect(did { space.extentWanted(for: .preserving) == .coming })
        #expect(did { space.erasureDue() == [0] })
        #expect(did { space.erasureDue() == nil }, "one erasure at a time")
        #expect(did { space.extentAwaited(for: .preserving) == .coming })
        space.erased(ByteRange(offset: 0, length: extent), isClean: true)
        #expect(did { space.extentAwaited(for: .preserving) == .granted(byteOffset: 0) })
    }

    @Test func `what could not be erased is never granted, and is tried once more at the end`() {
        var space = fixed(3)
        _ = space.takeAll()
        for number in 0..<UInt64(3) { space.extentReleased(byteOffset: number * extent) }
        space.eraseAll(isClean: false)
        #expect(space.unclean.count == 3)
        #expect(did { space.extentWanted(for: .preserving) == .full })
        #expect(did { space.lastErasureDue()?.count == 3 })
        for number in 0..<UInt64(3) {
            space.erased(ByteRange(offset: number * extent, length: extent), isClean: number > 0)
        }
        space.erasureEnded()
        #expect(space.unclean == [0])
        #expect(did { space.lastErasureDue() == nil })
    }
}

@Suite struct `A growth step` {
    private func planned() -> GrowthRun? {
        var space = file(limit: 1000, first: 64, step: 64)
        return space.growthDue()
    }

    @Test func `allocates 64 MiB at a time`() throws {
        var run = try #require(planned())
        var sizes: [UInt64] = []
        while let piece = run.next(room: nil) {
            sizes.append(piece.byteCount >> 20)
            run.succeeded(piece)
        }
        #expect(sizes == [64, 64, 64, 64])
        #expect(!run.isShort)
        #expect(run.tailByteCount == 256 << 20)
    }

    /// As a filesystem of 900 MiB does with a step of 1.2 GiB: the last piece fails half-way.
    @Test func `tries a piece that fails with half its size, down to one extent`() throws {
        var run = try #require(planned())
        var free: UInt64 = 90 << 20
        var sizes: [UInt64] = []
        while let piece = run.next(room: nil) {
            sizes.append(piece.byteCount >> 20)
            if piece.byteCount <= free {
                free -= piece.byteCount
                run.succeeded(piece)
            } else {
                run.failed(piece)
            }
        }
        #expect(sizes == [64, 64, 32, 16, 16, 8, 8, 4])
        #expect(run.isShort)
        #expect(run.tailByteCount == 88 << 20)
    }

    @Test func `takes no more than the filesystem has beyond its reserve`() throws {
        var run = try #require(planned())
        let piece = run.next(room: 30 << 20)
        #expect(piece?.byteCount == 28 << 20)
        run.succeeded(try #require(piece))
        #expect(did { run.next(room: 2 << 20) == nil })
        #expect(run.isShort)
        #expect(run.room == 2 << 20)
    }
}

@Suite struct `Sizes of storage` {
    @Test(
        arguments: [
            (1 << 30, 1, 4 << 20), (64 << 20, 1, 4 << 20), (8 << 20, 1, 512 << 10),
            (8 << 20, 4, 128 << 10), (1 << 20, 1, 64 << 10), (1 << 20, 256, 16 << 10),
            (64 << 10, 1, 16 << 10), (0, 1, 16 << 10), (.max, 256, 4 << 20),
        ] as [(UInt64, Int, UInt64)])
    func `small storage and many devices get small extents`(
        total: UInt64, deviceCount: Int, expected: UInt64
    ) {
        #expect(ExtentSize.byteCount(for: total, deviceCount: deviceCount) == expected)
    }

    @Test func `a file grows in sixteenths of what it may reach, 16 MiB to 1 GiB`() {
        #expect(GrowthSteps.most(for: 1 << 20) == 16 << 20)
        #expect(GrowthSteps.most(for: 900 << 20) == 900 << 16)
        #expect(GrowthSteps.most(for: 20 << 30) == 1 << 30)
    }

    @Test func `a filesystem keeps a twentieth, at most 1 GiB`() {
        let small = FilesystemRoom(free: 900 << 20, size: 1000 << 20)
        #expect(small.reserve == 50 << 20)
        #expect(small.usable == 850 << 20)
        #expect(FilesystemRoom(free: 75 << 30, size: 1 << 40).usable == 74 << 30)
        #expect(FilesystemRoom(free: 1 << 20, size: 1 << 30).usable == 0)
    }

    @Test func `a snapshot needs at most the sizes of its devices and what they begin`() {
        #expect(StorageNeed.byteCount(of: [512]) == 64 << 20)
        let gibibyte: UInt64 = 1 << 30
        #expect(StorageNeed.byteCount(of: [gibibyte, gibibyte]) == 2 * gibibyte + (32 << 20))
        let most = UInt64(Int64.max)
        #expect(StorageNeed.byteCount(of: [most, most, most]) == most)
    }

    @Test func `neighbours are erased together, and nothing between them`() {
        let numbers: [UInt64] = [5, 1, 0, 2, 9]
        let pieces = ErasurePlan.pieces(of: numbers.map { $0 * extent }, extentByteCount: extent)
        #expect(
            pieces == [
                ByteRange(offset: 0, length: 3 * extent),
                ByteRange(offset: 5 * extent, length: extent),
                ByteRange(offset: 9 * extent, length: extent),
            ])
        let many = ErasurePlan.pieces(
            of: (0..<UInt64(40)).map { $0 * extent }, extentByteCount: extent)
        #expect(many.map(\.length) == [64 << 20, 64 << 20, 32 << 20])
        #expect(
            ErasurePlan.extents(of: pieces[0], extentByteCount: extent).map(\.offset)
                == [0, extent, 2 * extent])
    }
}
