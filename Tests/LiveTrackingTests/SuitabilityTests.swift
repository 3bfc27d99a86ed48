import BlockModel
import ChangeTracking
import Testing

@Suite struct `What may be tracked in use` {
    private static var good: LiveFacts {
        var facts = LiveFacts()
        facts.disk = "vda"
        facts.diskSequence = 7
        facts.hasRequests = true
        facts.hasKernelTypes = true
        facts.kernelVersion = (6, 1)
        return facts
    }

    @Test func `a disk that takes requests may be`() {
        #expect(Self.good.refusal == nil)
    }

    @Test func `a mapped device may be, unless an array that stands on it passes its writes on`() {
        var facts = Self.good
        facts.disk = "dm-0"
        facts.hasRequests = false
        facts.isMapped = true
        #expect(facts.refusal == nil)
        facts.passers = ["md0"]
        #expect(facts.refusal == .passedOn(by: "md0"))
    }

    static let refused: [(LiveRefusal, @Sendable (inout LiveFacts) -> Void)] = [
        (.kernelTooOld(5, 15), { $0.kernelVersion = (5, 15) }),
        (.noKernelTypes, { $0.hasKernelTypes = false }),
        (.realTimeKernel, { $0.isRealTimeKernel = true }),
        (.noSequence, { $0.diskSequence = 0 }),
        (.array, { $0.isArray = true }),
        (.memoryDisk, { $0.disk = "zram0" }),
        (.memoryDisk, { $0.disk = "ram0" }),
        (.persistentMemory, { $0.disk = "pmem0" }),
        (.persistentMemory, { $0.disk = "btt0" }),
        (.zoned("host-managed"), { $0.zoned = "host-managed" }),
        (.directlyMapped, { $0.isDirectlyMapped = true }),
        (.noRequests, { $0.hasRequests = false }),
    ]

    @Test(arguments: 0..<refused.count)
    func `what the block layer does not tell of is refused with the way out`(index: Int) {
        let (refusal, change) = Self.refused[index]
        var facts = Self.good
        change(&facts)
        #expect(facts.refusal == refusal)
        #expect(refusal.sentence.count > 40)
        #expect(!refusal.sentence.hasSuffix("."))
    }
}

@Suite struct `History of a live device` {
    private static let token = UniqueID(high: 1, low: 2)
    private static let boot = UniqueID(high: 3, low: 4)
    private static let name = ObjectName("data")!

    private static func origin(
        _ id: String = "disk", token: UniqueID? = token, sequence: UInt64 = 9,
        size: UInt64 = 1 << 20, restDigest: UInt64? = nil
    ) -> OriginRecord {
        OriginRecord(
            identity: .blockDevice(stableID: id, sequence: sequence),
            state: .unknown(size: size), liveToken: token, restDigest: restDigest)
    }

    private static func header(
        _ state: MapFileHeader.State, boot: UniqueID = boot, origin: OriginRecord = origin()
    ) -> MapFileHeader {
        MapFileHeader(
            beginning: Generation(id: UniqueID(high: 5, low: 6)), of: name, state: state,
            size: origin.state.size, bootID: boot, instance: UniqueID(high: 7, low: 8),
            origin: origin)
    }

    private static func decide(
        saved: Finding<MapFileHeader> = .absent, running: Finding<MapFileHeader> = .absent,
        origin: OriginRecord = origin(), finding: LiveFinding = .kept, isExclusive: Bool = false
    ) -> GenerationDecision {
        GenerationDecision(
            GenerationEvidence(
                name: name, origin: origin, bootID: boot, isExclusive: isExclusive, saved: saved,
                running: running, death: .absent, live: finding))
    }

    @Test func `a killed service's history goes on without a record of its death`() {
        let header = Self.header(.running)
        #expect(Self.decide(running: .found(header)) == .continuedFromRunning(header))
    }

    @Test func `a stopped service's history goes on from the saved map`() {
        let header = Self.header(.clean)
        #expect(
            Self.decide(saved: .found(header), running: .found(Self.header(.running)))
                == .continuedFromSaved(header))
    }

    private static let otherBoot = UniqueID(high: 9, low: 9)

    @Test func `another boot ends it when the service did not end cleanly`() {
        let rest = Self.origin(restDigest: 1)
        let running = Self.header(.running, boot: Self.otherBoot, origin: rest)
        #expect(
            Self.decide(running: .found(running), origin: rest, isExclusive: true)
                == .new(.restartedLive(.notSaved)))
        let inUse = Self.header(.invalid, boot: Self.otherBoot, origin: rest)
        #expect(
            Self.decide(saved: .found(inUse), origin: rest, isExclusive: true)
                == .new(.restartedLive(.notSaved)))
    }

    /// A saved map of another boot, and the device as it is now, with other marks and another number.
    private static func afterBoot(
        _ saved: OriginRecord, _ now: OriginRecord, isExclusive: Bool = true
    ) -> GenerationDecision {
        decide(
            saved: .found(header(.clean, boot: otherBoot, origin: saved)), origin: now,
            finding: .absent, isExclusive: isExclusive)
    }

    @Test func `it goes on over another boot of a device at rest on both sides of it`() {
        let now = Self.origin(token: UniqueID(high: 8, low: 8), sequence: 3, restDigest: 5)
        let saved = Self.header(
            .clean, boot: Self.otherBoot, origin: Self.origin(restDigest: 5))
        #expect(
            Self.afterBoot(Self.origin(restDigest: 5), now) == .continuedFromSaved(saved))
    }

    @Test func `it ends with another boot when one condition is not met`() {
        let rest = Self.origin(restDigest: 5)
        #expect(
            Self.afterBoot(rest, rest, isExclusive: false) == .new(.restartedLive(.noPromise)))
        #expect(Self.afterBoot(Self.origin(), rest) == .new(.restartedLive(.inUseAtStop)))
        #expect(Self.afterBoot(rest, Self.origin()) == .new(.restartedLive(.inUseAtStart)))
        #expect(Self.afterBoot(rest, Self.origin(restDigest: 6)) == .new(.changedOutside))
        #expect(Self.afterBoot(rest, Self.origin("other", restDigest: 5)) == .new(.otherOrigin))
        #expect(
            Self.afterBoot(Self.origin("", restDigest: 5), Self.origin("", restDigest: 5))
                == .new(.restartedLive(.noName)))
        #expect(
            Self.afterBoot(rest, Self.origin(size: 2 << 20, restDigest: 5))
                == .new(.resized(from: 1 << 20, to: 2 << 20)))
        #expect(
            Self.afterBoot(Self.origin(token: nil, restDigest: 5), rest) == .new(.servedBefore))
    }

    @Test func `what is recorded of a device at rest is read as it was written`() throws {
        let header = Self.header(.clean, origin: Self.origin(restDigest: 0xF123_4567_89AB_CDEF))
        var bytes = [UInt8](repeating: 0, count: MapFileHeader.byteCount)
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        header.encode(into: &raw)
        #expect(try MapFileHeader(decoding: bytes.span.bytes) == header)
    }

    @Test(arguments: [
        LiveFinding.absent, .programsGone, .doubt(.detached), .doubt(.passthrough(1)),
        .doubt(.skipped(3)), .doubt(.flightsFull(1)),
    ])
    func `other marks than those it went on with end it, with the reason`(finding: LiveFinding) {
        let decision = Self.decide(
            running: .found(Self.header(.running)),
            origin: Self.origin(token: UniqueID(high: 8, low: 8)), finding: finding)
        #expect(decision == .new(.marksInterrupted(finding)))
    }

    @Test func `another disk behind the same number ends it`() {
        #expect(
            Self.decide(
                running: .found(Self.header(.running)), origin: Self.origin(sequence: 10))
                == .new(.otherOrigin))
    }

    @Test func `another size ends it`() {
        #expect(
            Self.decide(
                running: .found(Self.header(.running)), origin: Self.origin(size: 2 << 20))
                == .new(.resized(from: 1 << 20, to: 2 << 20)))
    }

    @Test func `a map that lost its tracking ends it`() {
        #expect(Self.decide(running: .found(Self.header(.invalid))) == .new(.lostBefore))
    }

    @Test func `what was served before begins anew live, and the other way round`() {
        let served = Self.header(.clean, origin: Self.origin(token: nil))
        #expect(Self.decide(saved: .found(served)) == .new(.servedBefore))
        let decision = GenerationDecision(
            GenerationEvidence(
                name: Self.name, origin: Self.origin(token: nil), bootID: Self.boot,
                isExclusive: true, saved: .found(Self.header(.clean)), running: .absent,
                death: .absent))
        #expect(decision == .new(.liveBefore))
    }

    @Test func `a header keeps the token of its marks`() throws {
        let header = Self.header(.running)
        var bytes = [UInt8](repeating: 0, count: MapFileHeader.byteCount)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            header.encode(into: &raw)
        }
        #expect(try MapFileHeader(decoding: bytes.span.bytes) == header)
    }
}
