import BlockModel
import Testing

private final class CountingOwner: RequestOwner {
    var finished: [RequestIndex] = []

    override func requestFinished(_ index: RequestIndex) { finished.append(index) }
}

private final class CountingTarget: BlockTarget {
    var leftCount = 0

    override func usersChanged() { leftCount += 1 }
}

private final class LeavingUser: TargetUser {
    let target: BlockTarget
    var closings = 0

    init(_ target: BlockTarget) { self.target = target }

    func targetIsClosing() {
        closings += 1
        target.removeUser(self)
    }
}

@Suite struct `Requests` {
    @Test func `begin with nothing done and belong to no list`() {
        let owner = CountingOwner()
        let request = BlockRequest(
            operation: .write, flags: [.forceUnitAccess], offset: 4096, length: 512,
            owner: Unmanaged.passUnretained(owner), ownerToken: 7)
        #expect(request.range == ByteRange(offset: 4096, length: 512))
        #expect(request.part == request.range)
        #expect(request.operation == .write && request.flags == .forceUnitAccess)
        #expect(request.ownerToken == 7 && request.ownerNote == 0)
        #expect(request.fault == nil && request.buffer == nil && request.image == nil)
        #expect(request.resultByteCount == 0 && request.progress == 0 && request.step == 0)
        #expect(request.next == .none && request.previous == .none)
    }

    @Test func `tell their owner when they finish`() {
        let owner = CountingOwner()
        owner.requestFinished(RequestIndex(3))
        #expect(owner.finished == [RequestIndex(3)])
    }

    @Test func `are described in extents`() {
        #expect(StatusExtent(length: 5, flags: 3) == StatusExtent(length: 5, flags: 3))
        #expect(StatusExtent(length: 5, flags: 3) != StatusExtent(length: 5, flags: 2))
    }
}

@Suite struct `Targets` {
    @Test func `know their users and tell each of them that they close`() {
        let target = CountingTarget(size: 1 << 20, alignment: 512)
        #expect(target.size == 1 << 20 && target.alignment == 512)
        let users = (0..<3).map { _ in LeavingUser(target) }
        for user in users { #expect(target.addUser(user)) }
        #expect(target.userCount == 3)
        target.removeUser(users[0])
        #expect(target.userCount == 2 && target.leftCount == 1)
        target.closeUsers()
        #expect(target.userCount == 0 && target.leftCount == 3)
        #expect(users.map(\.closings) == [0, 1, 1])
    }

    @Test func `take nobody any more once they close`() {
        let target = CountingTarget(size: 1 << 20, alignment: 512)
        target.closeUsers()
        let late = LeavingUser(target)
        #expect(!target.addUser(late))
        #expect(target.userCount == 0 && late.closings == 0)
    }

    @Test(arguments: RequestOperation.allCases)
    func `say why a request cannot be performed that their end has moved away from`(
        operation: RequestOperation
    ) {
        let owner = CountingOwner()
        let target = BlockTarget(size: 8192, alignment: 512)
        func fault(_ offset: UInt64, _ length: UInt64) -> Fault? {
            target.faultBeyondEnd(
                of: BlockRequest(
                    operation: operation, offset: offset, length: length,
                    owner: Unmanaged.passUnretained(owner)))
        }
        let expected: Fault? =
            switch operation {
            case .flush: nil
            case .write, .writeZeroes: .noSpace
            case .read, .discard, .prefetch, .blockStatus: .invalid
            }
        #expect(fault(0, 8192) == nil && fault(8192, 0) == nil)
        target.size = 4096
        #expect(fault(0, 4096) == nil)
        for (offset, length) in [(4096, 1), (0, 4097), (8192, 0), (UInt64.max - 1, 1)]
            as [(UInt64, UInt64)]
        {
            #expect(fault(offset, length) == expected)
        }
    }

    @Test func `without an interest in users bear their coming and going`() {
        let target = BlockTarget(size: 0, alignment: 1)
        let user = LeavingUser(target)
        #expect(target.addUser(user))
        target.removeUser(user)
        #expect(target.userCount == 0)
    }

    @Test func `have an alignment that is a power of two up to a block`() async {
        for alignment in [0, 3, 8192] as [UInt64] {
            await #expect(processExitsWith: .failure) { [alignment = alignment as UInt64] in
                _ = BlockTarget(size: 1, alignment: alignment)
            }
        }
    }
}

@Suite struct `Indexes` {
    @Test func `convert between bytes, blocks and chunks, rounding down`() {
        let block = BlockIndex(containing: 65536 + 4095)
        #expect(block == BlockIndex(16) && block.byteOffset == 65536)
        #expect(BlockIndex(35).chunk == ChunkIndex(2) && BlockIndex(35).positionInChunk == 3)
        let chunk = ChunkIndex(containing: 131_071)
        #expect(chunk == ChunkIndex(1) && chunk.byteOffset == 65536)
        #expect(chunk.firstBlock == BlockIndex(16))
        #expect(BlockIndex(1) < BlockIndex(2) && ChunkIndex(1) < ChunkIndex(2))
    }

    @Test func `and ranges tell whether they are aligned`() {
        #expect(ByteRange(offset: 4096, length: 8192).isAligned(to: 4096))
        #expect(!ByteRange(offset: 512, length: 4096).isAligned(to: 4096))
        #expect(!ByteRange(offset: 4096, length: 512).isAligned(to: 4096))
    }
}

@Suite struct `Names` {
    @Test func `are written as they were read, and ordered`() throws {
        let one = try #require(ObjectName("disk.1"))
        let two = try #require(ObjectName("disk.2"))
        #expect("\(one)" == "disk.1" && one < two && !(two < one))
    }

    @Test func `of generations are UUIDs`() {
        let id = UniqueID(high: 0x0123_4567_89AB_CDEF, low: 0x0011_2233_4455_6677)
        #expect("\(Generation(id: id))" == "01234567-89ab-cdef-0011-223344556677")
    }

    @Test func `of a base tell all that a query needs`() {
        let base = TrackingBase(
            generation: Generation(id: UniqueID(high: 1, low: 2)), epoch: Epoch(3), size: 4)
        #expect(base.epoch == Epoch(3) && base.size == 4 && base.generation.id.low == 2)
    }
}
