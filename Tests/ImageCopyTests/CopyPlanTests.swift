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

    private func wish(
        _ epoch: UInt32, since: UInt32? = nil, of generation: String = Self.generation,
        force: Bool = false
    ) -> CopyWish {
        CopyWish(
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
        _ wish: CopyWish, _ target: CopyTargetFacts, _ found: CopyRecordFound
    ) -> CopyError.Code? {
        do throws(CopyError) {
            _ = try CopyPlan(wish, target, found)
            return nil
        } catch { return error.code }
    }

    // MARK: Whole

    @Test func `of everything goes into an empty file whatever lies beside it`() throws {
        for found in [CopyRecordFound.none, .damaged, complete(3, device: "vm2")] {
            let plan = try CopyPlan(wish(5), target { $0.size = 0 }, found)
            #expect(plan == .full(isFresh: true))
        }
    }

    @Test func `of everything replaces an older, an interrupted and a changed copy`() throws {
        let changed = target { $0.changedNanoseconds = 100 }
        for found in [complete(3), complete(9), running(nil, 4), running(3, 4)] {
            #expect(try CopyPlan(wish(5), target(), found) == .full(isFresh: false))
            #expect(try CopyPlan(wish(5), changed, found) == .full(isFresh: false))
        }
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
            #expect(refusal(wish(5), target, found) == .busy)
            #expect(try CopyPlan(wish(5, force: true), target, found) == .full(isFresh: false))
        }
    }

    @Test func `goes onto a block device that is large enough and holds nothing known`() throws {
        let disk = target { $0.isBlockDevice = true }
        #expect(try CopyPlan(wish(5), disk, .none) == .full(isFresh: false))
        var full = disk
        full.content = "an ext4 filesystem"
        #expect(refusal(wish(5), full, .none) == .busy)
        let small = target {
            $0.isBlockDevice = true
            $0.size = (1 << 20) - 1
        }
        #expect(refusal(wish(5, force: true), small, .none) == .unsuitable)
    }

    // MARK: Increment

    @Test func `of what changed begins at the cut that the target equals`() throws {
        let plan = try CopyPlan(wish(5, since: 3), target(), complete(3))
        #expect(plan == .increment(from: cut(3)))
        // Whatever changed since an older cut covers what changed since a newer one.
        let later = try CopyPlan(wish(5, since: 3), target(), complete(4))
        #expect(later == .increment(from: cut(4)))
        for found in [complete(2), complete(6)] {
            #expect(refusal(wish(5, since: 3), target(), found) == .unfit)
        }
    }

    @Test func `of what changed that was finished already is nothing`() throws {
        #expect(try CopyPlan(wish(5, since: 3), target(), complete(5)) == .nothing)
        let changed = target { $0.changedNanoseconds = 100 }
        #expect(refusal(wish(5, since: 3), changed, complete(5)) == .unfit)
    }

    @Test func `of what changed needs a target that is as it was left`() {
        let wish = wish(5, since: 3)
        for target in [
            target { $0.changedNanoseconds = 100 }, target { $0.size += 512 },
            target { $0.isBlockDevice = true }, target { $0.size = 0 },
        ] {
            #expect(refusal(wish, target, complete(3)) == .unfit)
        }
        for found in [CopyRecordFound.none, .damaged, complete(3, device: "vm2")] {
            #expect(refusal(wish, target(), found) == .unfit)
        }
    }

    @Test func `of what changed does not cross histories`() {
        let other = "0a0a0a0a-0000-4000-8000-000000000002"
        #expect(refusal(wish(5, since: 3, of: other), target(), complete(3)) == .unfit)
        #expect(refusal(wish(5, since: 3, of: other), target(), running(3, 4)) == .unfit)
        #expect(refusal(wish(5, since: 3, of: other), target(), complete(5)) == .unfit)
    }

    @Test func `that was interrupted is finished with its base, by its cut or a later one`() throws
    {
        let half = target { $0.changedNanoseconds = 100 }
        for epoch in [5, 6] as [UInt32] {
            let plan = try CopyPlan(wish(epoch, since: 3), half, running(3, 5))
            #expect(plan == .increment(from: cut(3)))
        }
        let older = try CopyPlan(wish(6, since: 2), half, running(3, 5))
        #expect(older == .increment(from: cut(3)))
        #expect(refusal(wish(4, since: 3), half, running(3, 5)) == .unfit)
        #expect(refusal(wish(6, since: 5), half, running(3, 5)) == .unfit)
        #expect(refusal(wish(6, since: 3), half, running(nil, 5)) == .unfit)
        let another = target { $0.inode = 8 }
        #expect(refusal(wish(6, since: 3), another, running(3, 5)) == .unfit)
        let short = target { $0.size = 4096 }
        #expect(refusal(wish(6, since: 3), short, running(3, 5)) == .unfit)
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
