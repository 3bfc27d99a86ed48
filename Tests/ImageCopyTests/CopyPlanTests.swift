import BlockModel
import CopyPlanning
import Foundation
import ImageCopy
import Testing

/// What is decided about a target.
@Suite struct `A copy` {
    private static let generation = "0a0a0a0a-0000-4000-8000-000000000001"

    private func cut(_ epoch: UInt32, of generation: String = Self.generation) -> CopyCut {
        CopyCut(
            generation: generation, epoch: epoch, size: 1 << 20, snapshot: "s\(epoch)",
            snapshotId: "id-\(epoch)")
    }

    private let file = CopyRecord.File(
        isBlockDevice: false, size: 1 << 20, inode: 7, changedNanoseconds: 99)

    private func target(_ change: (inout CopyRecord.File) -> Void = { _ in }) -> CopyTargetFacts {
        var file = file
        change(&file)
        return CopyTargetFacts(path: "/t", file: file)
    }

    private func request(
        _ epoch: UInt32, since: UInt32? = nil, of generation: String = Self.generation,
        force: Bool = false
    ) -> CopyRequest {
        CopyRequest(
            device: "vm1", cut: cut(epoch, of: generation),
            since: since.map { .init(name: "s\($0)", generation: generation, epoch: $0) },
            isForced: force)
    }

    private func complete(_ epoch: UInt32, device: String = "vm1") -> CopyRecordFound {
        .record(.complete(device: device, cut(epoch), file))
    }

    private func running(_ from: UInt32?, _ to: UInt32) -> CopyRecordFound {
        .record(.running(device: "vm1", from: from.map { cut($0) }, to: cut(to), file))
    }

    private func refusal(
        _ request: CopyRequest, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) -> CopyError.Code? {
        do throws(CopyError) {
            _ = try CopyPlan(request, target, found)
            return nil
        } catch { return error.code }
    }

    // MARK: Whole

    @Test func `of everything goes into an empty file whatever lies beside it`() throws {
        for found in [CopyRecordFound.none, .damaged, complete(3, device: "vm2")] {
            let plan = try CopyPlan(request(5), target { $0.size = 0 }, found)
            #expect(plan == .full(.init(isFresh: true)))
        }
    }

    @Test func `of everything replaces what an interrupted copy left`() throws {
        let changed = target { $0.changedNanoseconds = 100 }
        for found in [running(nil, 4), running(3, 4)] {
            #expect(try CopyPlan(request(5), target(), found) == .full(.init()))
            #expect(try CopyPlan(request(5), changed, found) == .full(.init()))
        }
    }

    @Test func `of everything leaves a complete copy of another cut alone, unless told otherwise`()
        throws
    {
        let changed = target { $0.changedNanoseconds = 100 }
        for (target, found) in [
            (target(), complete(3)), (target(), complete(9)), (changed, complete(5)),
        ] {
            #expect(refusal(request(5), target, found) == .busy)
            let beside = CopyPlan.full(.init(isBeside: true))
            #expect(try CopyPlan(request(5, force: true), target, found) == beside)
            var kept = request(5)
            kept.mayReplace = true
            #expect(try CopyPlan(kept, target, found) == beside)
        }
        #expect(try CopyPlan(request(5), target(), complete(5)) == .nothing)
    }

    @Test func `of everything goes on where it was interrupted, for the same cut alone`() throws {
        let half = target { $0.changedNanoseconds = 100 }
        let done = [CopyRecord.Extent(offset: 4096, length: 8192)]
        let found = CopyRecordFound.record(
            .running(device: "vm1", from: nil, to: cut(5), file, done: done, isFresh: true))
        let ranges = [ByteRange(offset: 4096, length: 8192)]
        #expect(
            try CopyPlan(request(5), half, found) == .full(.init(isFresh: true, done: ranges)))
        #expect(CopyPlan.whyAnew(request(5), half, found) == nil)
        #expect(try CopyPlan(request(6), half, found) == .full(.init()))
        #expect(CopyPlan.whyAnew(request(6), half, found)?.contains("vm1@s5") == true)
        let short = target { $0.size = 4096 }
        #expect(try CopyPlan(request(5), short, found) == .full(.init()))
        // Of a disk something must prove that it is as it was left.
        var (disk, record) = (
            self.disk(touched: 9),
            CopyRecord.running(
                device: "vm1", from: nil, to: cut(5), self.disk(touched: 7).file, done: done)
        )
        #expect(try CopyPlan(request(5), disk, .record(record)) == .full(.init()))
        record.samples = [.init(offset: 4096, length: 4096, checksum: 1)]
        disk.samplesMatch = true
        #expect(try CopyPlan(request(5), disk, .record(record)) == .full(.init(done: ranges)))
        disk.samplesMatch = false
        #expect(try CopyPlan(request(5), disk, .record(record)) == .full(.init()))
    }

    @Test func `overwrites nothing that is not a copy of the same device, unless forced`() throws {
        let another = target {
            $0.inode = 8
            $0.changedNanoseconds = 100
        }
        let cases: [(CopyTargetFacts, CopyRecordFound)] = [
            (target(), .none), (target(), .damaged), (target(), complete(3, device: "vm2")),
            (another, complete(3)),
        ]
        for (target, found) in cases {
            #expect(refusal(request(5), target, found) == .busy)
            guard case .full = try CopyPlan(request(5, force: true), target, found) else {
                Issue.record("a forced copy is a full one")
                continue
            }
        }
    }

    // MARK: Block devices

    /// A disk of the copy's size that has seen `touched` sectors of writes.
    private func disk(
        touched: UInt64? = 7, identity: String = "wwid 1", boot: String = "b", sequence: UInt64 = 4
    ) -> CopyTargetFacts {
        target {
            $0.isBlockDevice = true
            $0.disk = DiskState(
                identity: identity, boot: boot, sequence: sequence, touchedSectors: touched)
        }
    }

    private func completeOnDisk(_ epoch: UInt32, _ file: CopyRecord.File) -> CopyRecordFound {
        .record(.complete(device: "vm1", cut(epoch), file))
    }

    @Test func `goes onto a block device that is large enough and holds nothing`() throws {
        #expect(try CopyPlan(request(5), disk(), .none) == .full(.init()))
        var full = disk()
        full.content = "an ext4 filesystem"
        #expect(refusal(request(5), full, .none) == .busy)
        let small = target {
            $0.isBlockDevice = true
            $0.size = (1 << 20) - 1
        }
        #expect(refusal(request(5, force: true), small, .none) == .unsuitable)
    }

    @Test func `of what changed goes onto the same disk, as long as nobody wrote to it`() throws {
        let request = request(5, since: 3)
        let found = completeOnDisk(3, disk().file)
        #expect(try CopyPlan(request, disk(), found) == .increment(from: cut(3)))
        for other in [
            disk(touched: 8), disk(identity: "wwid 2"), disk(identity: ""), disk(touched: nil),
            disk(boot: "c"), disk(sequence: 5),
        ] {
            #expect(refusal(request, other, found) == .unfit)
        }
        // After a reboot checksums of the contents tell.
        for match in [true, false] {
            var again = disk(touched: 0, boot: "c")
            again.samplesMatch = match
            if match {
                #expect(try CopyPlan(request, again, found) == .increment(from: cut(3)))
            } else {
                #expect(refusal(request, again, found) == .unfit)
            }
        }
        // They do not outweigh counters that moved.
        var written = disk(touched: 8)
        written.samplesMatch = true
        #expect(refusal(request, written, found) == .unfit)
    }

    @Test func `onto a disk without a lasting name is known in the same run of the machine alone`()
        throws
    {
        let request = request(5, since: 3)
        let nameless = disk(identity: "")
        let found = completeOnDisk(3, nameless.file)
        #expect(try CopyPlan(request, nameless, found) == .increment(from: cut(3)))
        for other in [disk(identity: "", boot: "c"), disk(identity: "", sequence: 5)] {
            var other = other
            other.samplesMatch = true
            #expect(refusal(request, other, found) == .unfit)
            #expect(refusal(self.request(5), other, found) == .busy)
        }
    }

    @Test func `onto a loop device is known by the file under it`() throws {
        let request = request(5, since: 3)
        var loop = disk(touched: 7)
        loop.file.disk?.backing = .init(size: 9, modifiedNanoseconds: 1, changedNanoseconds: 1)
        let found = completeOnDisk(3, loop.file)
        var again = loop
        again.file.disk?.boot = "c"
        again.file.disk?.touchedSectors = 0
        #expect(try CopyPlan(request, again, found) == .increment(from: cut(3)))
        again.file.disk?.backing?.modifiedNanoseconds = 2
        #expect(refusal(request, again, found) == .unfit)
    }

    @Test func `that was interrupted on a disk is finished where checksums vouch for the rest`()
        throws
    {
        let request = request(5, since: 3)
        let found = CopyRecordFound.record(
            .running(device: "vm1", from: cut(3), to: cut(5), disk().file))
        for match in [true, false, nil] as [Bool?] {
            var half = disk(touched: 8)
            half.samplesMatch = match
            if match == true {
                #expect(try CopyPlan(request, half, found) == .increment(from: cut(3)))
            } else {
                #expect(refusal(request, half, found) == .unfit)
            }
        }
    }

    // MARK: Increment

    @Test func `of what changed begins at the cut that the target equals`() throws {
        let plan = try CopyPlan(request(5, since: 3), target(), complete(3))
        #expect(plan == .increment(from: cut(3)))
        // Whatever changed since an older cut covers what changed since a newer one.
        let later = try CopyPlan(request(5, since: 3), target(), complete(4))
        #expect(later == .increment(from: cut(4)))
        for found in [complete(2), complete(6)] {
            #expect(refusal(request(5, since: 3), target(), found) == .unfit)
        }
    }

    @Test func `of what changed that was finished already is nothing`() throws {
        #expect(try CopyPlan(request(5, since: 3), target(), complete(5)) == .nothing)
        let changed = target { $0.changedNanoseconds = 100 }
        #expect(refusal(request(5, since: 3), changed, complete(5)) == .unfit)
    }

    @Test func `of what changed needs a target that is as it was left`() {
        let request = request(5, since: 3)
        for target in [
            target { $0.changedNanoseconds = 100 }, target { $0.size += 512 },
            target { $0.isBlockDevice = true }, target { $0.size = 0 },
        ] {
            #expect(refusal(request, target, complete(3)) == .unfit)
        }
        for found in [CopyRecordFound.none, .damaged, complete(3, device: "vm2")] {
            #expect(refusal(request, target(), found) == .unfit)
        }
    }

    @Test func `of what changed does not cross histories`() {
        let other = "0a0a0a0a-0000-4000-8000-000000000002"
        #expect(refusal(request(5, since: 3, of: other), target(), complete(3)) == .unfit)
        #expect(refusal(request(5, since: 3, of: other), target(), running(3, 4)) == .unfit)
        #expect(refusal(request(5, since: 3, of: other), target(), complete(5)) == .unfit)
    }

    @Test func `that was interrupted is finished with its base, by its cut or a later one`() throws
    {
        let half = target { $0.changedNanoseconds = 100 }
        for epoch in [5, 6] as [UInt32] {
            let plan = try CopyPlan(request(epoch, since: 3), half, running(3, 5))
            #expect(plan == .increment(from: cut(3)))
        }
        let older = try CopyPlan(request(6, since: 2), half, running(3, 5))
        #expect(older == .increment(from: cut(3)))
        #expect(refusal(request(4, since: 3), half, running(3, 5)) == .unfit)
        #expect(refusal(request(6, since: 5), half, running(3, 5)) == .unfit)
        #expect(refusal(request(6, since: 3), half, running(nil, 5)) == .unfit)
        let another = target { $0.inode = 8 }
        #expect(refusal(request(6, since: 3), another, running(3, 5)) == .unfit)
        let short = target { $0.size = 4096 }
        #expect(refusal(request(6, since: 3), short, running(3, 5)) == .unfit)
    }

    // MARK: Record

    @Test func `is recorded in text of which no bit can change unseen`() throws {
        for found in [complete(3), running(nil, 4), running(3, 4)] {
            guard case .record(let record) = found else { continue }
            let bytes = try record.encoded()
            var back = try #require(CopyRecord.decoded(bytes))
            back.checksum = ""
            #expect(back == record)
            for place in bytes.indices {
                var flipped = bytes
                flipped[place] ^= 1 << UInt8(place % 7)
                // White space may change: nothing that is said does.
                if var read = CopyRecord.decoded(flipped) {
                    read.checksum = ""
                    #expect(read == record, "byte \(place)")
                }
            }
            for count in 0..<bytes.count - 1 {
                #expect(CopyRecord.decoded(Array(bytes[..<count])) == nil)
            }
        }
        #expect(CopyRecord.decoded([]) == nil)
    }

    @Test func `reads the record that the first release wrote`() throws {
        let golden = """
            {
              "checksum" : "94222623",
              "device" : "vm1",
              "equals" : {
                "epoch" : 3,
                "generation" : "0a0a0a0a-0000-4000-8000-000000000001",
                "size" : 1048576,
                "snapshot" : "s3",
                "snapshot_id" : "id-3"
              },
              "format" : "stillpoint-copy",
              "state" : "complete",
              "target" : {
                "changed_nanoseconds" : 99,
                "inode" : 7,
                "is_block_device" : false,
                "size" : 1048576
              },
              "version" : 1
            }
            """
        var record = try #require(CopyRecord.decoded(Array(golden.utf8)))
        record.checksum = ""
        #expect(CopyRecordFound.record(record) == complete(3))
    }
}
