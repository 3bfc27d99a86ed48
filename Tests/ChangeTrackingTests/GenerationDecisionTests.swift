import BlockModel
import ChangeTracking
import Testing

@Suite struct `A device's history` {
    private let size: UInt64 = Samples.size
    private let otherBoot = UniqueID(high: 7, low: 7)

    /// What a clean detach leaves.
    private func saved(_ origin: OriginRecord, boot: UniqueID? = nil) -> GenerationEvidence {
        var header = Samples.header(origin)
        header.bootID = boot ?? Samples.boot
        return evidence(origin, saved: .found(header))
    }

    /// What a killed service and its guardian leave.
    private func killed(
        _ origin: OriginRecord, death: Finding<DeathRecord>? = nil
    ) -> GenerationEvidence {
        var invalid = Samples.header(origin)
        invalid.state = .invalid
        var running = Samples.header(origin)
        running.state = .running
        return evidence(
            origin, saved: .found(invalid), running: .found(running),
            death: death ?? record(.origin(origin)))
    }

    private func record(
        _ finding: DeathRecord.Finding, instance: UniqueID = Samples.instance,
        boot: UniqueID = Samples.boot
    ) -> Finding<DeathRecord> {
        .found(DeathRecord(instance: instance, bootID: boot, finding: finding))
    }

    private func evidence(
        _ origin: OriginRecord, saved: Finding<MapFileHeader> = .absent,
        running: Finding<MapFileHeader> = .absent, death: Finding<DeathRecord> = .absent
    ) -> GenerationEvidence {
        GenerationEvidence(
            name: Samples.name, origin: origin, bootID: Samples.boot, isExclusive: false,
            saved: saved, running: running, death: death)
    }

    private func file(
        size: UInt64 = Samples.size, modified: UInt32 = 6, changed: UInt32 = 7, inode: UInt64 = 4711
    ) -> OriginRecord {
        OriginRecord(
            identity: .file(
                filesystem: 0x0801, inode: inode,
                birth: FileTime(seconds: 1_700_000_000, nanoseconds: 5)),
            state: .file(
                size: size, modified: FileTime(seconds: 1_700_000_001, nanoseconds: modified),
                changed: FileTime(seconds: 1_700_000_002, nanoseconds: changed)))
    }

    private func disk(
        size: UInt64 = Samples.size, id: String = "wwid naa.5000", sequence: UInt64 = 42,
        writes: UInt64 = 1, diskWrites: UInt64 = 5,
        discards: UInt64 = 7
    ) -> OriginRecord {
        OriginRecord(
            identity: .blockDevice(stableID: id, sequence: sequence),
            state: .blockDevice(
                size: size,
                own: WriteCounters(writtenSectors: writes, discardedSectors: 2),
                disk: WriteCounters(writtenSectors: diskWrites, discardedSectors: discards)))
    }

    private func uncounted() -> OriginRecord {
        OriginRecord(
            identity: .blockDevice(stableID: "wwid naa.5000", sequence: 42),
            state: .unknown(size: size))
    }

    // MARK: Continued

    @Test func `goes on after a clean detach`() {
        for origin in [file(), disk()] {
            let evidence = saved(origin)
            #expect(GenerationDecision(evidence) == .continuedFromSaved(Samples.header(origin)))
        }
    }

    @Test func `goes on after a kill, from the running map`() {
        for origin in [file(), disk()] {
            guard case .continuedFromRunning(let header) = GenerationDecision(killed(origin)) else {
                Issue.record("a kill ended the history")
                continue
            }
            #expect(header.generation == Samples.generation)
            #expect(header.state == .running)
        }
    }

    @Test func `of a file goes on over a restart of the machine after a clean detach`() {
        guard case .continuedFromSaved = GenerationDecision(saved(file(), boot: otherBoot)) else {
            Issue.record("the times of a file outlive a restart")
            return
        }
    }

    @Test func `of a block device goes on over a restart on the operator's word only`() {
        var evidence = saved(disk(), boot: otherBoot)
        // Counters and sequence numbers begin anew with the machine.
        evidence.origin = disk(sequence: 3, writes: 0, diskWrites: 0)
        #expect(GenerationDecision(evidence) == .new(.restartedBlockDevice))
        evidence.isExclusive = true
        guard case .continuedFromSaved = GenerationDecision(evidence) else {
            Issue.record("the word did not count")
            return
        }
        evidence.origin = disk(size: 1 << 30, sequence: 3)
        #expect(GenerationDecision(evidence) == .new(.resized(from: size, to: 1 << 30)))
        evidence.origin = disk(id: "wwid naa.6000", sequence: 3)
        #expect(GenerationDecision(evidence) == .new(.otherOrigin))
    }

    @Test func `of a disk without a name of its own ends with the machine`() {
        var evidence = saved(disk(id: ""), boot: otherBoot)
        evidence.isExclusive = true
        #expect(GenerationDecision(evidence) == .new(.otherOrigin))
        // Within one run of the machine its sequence number names it.
        guard case .continuedFromSaved = GenerationDecision(saved(disk(id: ""))) else {
            Issue.record("a sequence number names a disk")
            return
        }
    }

    @Test func `goes on from the saved map when a kill fell between its two ends`() {
        var evidence = killed(file())
        evidence.saved = .found(Samples.header(file()))
        guard case .continuedFromSaved = GenerationDecision(evidence) else {
            Issue.record("a clean map is newer than a running one")
            return
        }
    }

    @Test func `goes on from the running map when the saved one was damaged meanwhile`() {
        var evidence = killed(file())
        evidence.saved = .damaged(.checksum)
        guard case .continuedFromRunning = GenerationDecision(evidence) else {
            Issue.record("the saved map was out of use")
            return
        }
    }

    // MARK: New

    @Test func `is new when nothing is recorded`() {
        #expect(GenerationDecision(evidence(file())) == .new(.firstAttach))
    }

    @Test(arguments: [
        MapFileHeader.Damage.truncated, .foreign, .unknownVersion(9), .checksum, .impossible,
        .unreadable(5),
    ])
    func `is new when what is recorded is damaged`(damage: MapFileHeader.Damage) {
        #expect(
            GenerationDecision(evidence(file(), saved: .damaged(damage)))
                == .new(.savedDamaged(damage)))
        var running = killed(file())
        running.running = .damaged(damage)
        #expect(GenerationDecision(running) == .new(.runningDamaged(damage)))
        running = killed(file(), death: .damaged(damage))
        #expect(GenerationDecision(running) == .new(.deathRecordDamaged(damage)))
    }

    @Test func `is new when a file was changed while it was detached`() {
        for (now, reason) in [
            (file(modified: 8), NewGenerationReason.changedOutside),
            (file(changed: 8), .changedOutside),
            (file(size: 1 << 30), .resized(from: size, to: 1 << 30)),
            (file(inode: 4712), .otherOrigin), (disk(), .otherOrigin),
        ] {
            var evidence = saved(file())
            evidence.origin = now
            #expect(GenerationDecision(evidence) == .new(reason))
            evidence = killed(file())
            evidence.origin = now
            #expect(GenerationDecision(evidence) == .new(reason))
        }
    }

    @Test func `is new when a block device was written to while it was detached`() {
        for (now, reason) in [
            (disk(writes: 2), NewGenerationReason.changedOutside),
            // Through the whole disk, past the partition.
            (disk(diskWrites: 6), .changedOutside), (disk(discards: 8), .changedOutside),
            (disk(size: 1 << 30), .resized(from: size, to: 1 << 30)),
            (disk(id: "wwid naa.6000"), .otherOrigin), (disk(sequence: 43), .otherOrigin),
            (file(), .otherOrigin),
        ] {
            for isExclusive in [false, true] {
                var evidence = saved(disk())
                evidence.origin = now
                evidence.isExclusive = isExclusive
                #expect(GenerationDecision(evidence) == .new(reason))
                evidence = killed(disk())
                evidence.origin = now
                evidence.isExclusive = isExclusive
                #expect(GenerationDecision(evidence) == .new(reason))
            }
        }
    }

    @Test func `of an origin whose writes nobody counts rests on the operator's word`() {
        for var evidence in [saved(uncounted()), killed(uncounted())] {
            #expect(GenerationDecision(evidence) == .new(.notCounted))
            evidence.isExclusive = true
            guard case .new = GenerationDecision(evidence) else { continue }
            Issue.record("the word did not count")
        }
        var evidence = saved(disk())
        evidence.origin = uncounted()
        #expect(GenerationDecision(evidence) == .new(.notCounted))
    }

    @Test func `is new after a crash of the machine`() {
        var evidence = killed(file())
        evidence.bootID = otherBoot
        #expect(GenerationDecision(evidence) == .new(.restarted))
        evidence.isExclusive = true
        #expect(GenerationDecision(evidence) == .new(.restarted))
    }

    @Test func `is new when the running map is gone`() {
        var evidence = killed(file())
        evidence.running = .absent
        #expect(GenerationDecision(evidence) == .new(.notClean))
    }

    @Test func `is new without the guardian's record of this death`() {
        #expect(GenerationDecision(killed(file(), death: .absent)) == .new(.noDeathRecord))
        let other = record(.origin(file()), instance: UniqueID(high: 1, low: 1))
        #expect(GenerationDecision(killed(file(), death: other)) == .new(.noDeathRecord))
        let old = record(.origin(file()), boot: otherBoot)
        #expect(GenerationDecision(killed(file(), death: old)) == .new(.noDeathRecord))
        #expect(
            GenerationDecision(killed(file(), death: record(.failed("locked"))))
                == .new(.deathNotRecorded("locked")))
        let otherOrigin = record(.origin(file(inode: 1)))
        #expect(GenerationDecision(killed(file(), death: otherOrigin)) == .new(.otherOrigin))
    }

    @Test func `is new when tracking was lost in the run before`() {
        var evidence = killed(file())
        var lost = Samples.header(file())
        lost.state = .invalid
        evidence.running = .found(lost)
        #expect(GenerationDecision(evidence) == .new(.lostBefore))
    }

    @Test func `is new under another device's map`() throws {
        let other = try #require(ObjectName("vm2"))
        var evidence = saved(file())
        evidence.name = other
        #expect(GenerationDecision(evidence) == .new(.otherDevice(Samples.name)))
        evidence = killed(file())
        evidence.name = other
        #expect(GenerationDecision(evidence) == .new(.otherDevice(Samples.name)))
    }

    @Test func `gives a reason that says what happened`() {
        let reasons: [NewGenerationReason] = [
            .firstAttach, .savedDamaged(.checksum), .runningDamaged(.truncated),
            .otherDevice(Samples.name), .otherOrigin, .resized(from: 1, to: 2), .changedOutside,
            .notCounted, .restarted, .restartedBlockDevice, .notClean, .noDeathRecord,
            .deathRecordDamaged(.foreign), .deathNotRecorded("locked"), .lostBefore,
            .mapMemoryShort(28), .mapDamaged, .epochsUsedUp, .shrunk(from: 2, to: 1),
        ]
        #expect(Set(reasons.map(\.sentence)).count == reasons.count)
        #expect(reasons.allSatisfy { !$0.sentence.isEmpty && !$0.sentence.hasSuffix(".") })
    }
}
