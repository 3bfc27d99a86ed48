package import BlockModel
package import ChangeTracking
internal import Glibc
internal import Host
package import Origins

// The generation of a device from what was recorded of it to the memory that its loop marks in, and
// back. Three steps, each blocking:
//
//   open ──► (the guardian watches) ──► admit ──► (the device serves) ──► end
//
// Invariants
// - `open` uses up nothing: a service killed after it finds everything as it was.
// - After `admit` the saved map is unclean on stable storage, and the running one is in force.
// - `end` removes the running map only when the saved one is in force again, or the generation is
//   given up.

/// A device's generation, found or begun.
package struct OpenedGeneration: Sendable {
    /// The map, shared with the running file.
    package let memory: ChangeMapMemory
    /// What the running file says of the generation.
    package var header: MapFileHeader
    let status: GenerationStatus
    /// Nil for a device whose generation is not kept.
    package let request: TrackingRequest?
    /// Why the generation is new; nil when it was continued.
    package let reason: NewGenerationReason?
    private let saved: Finding<MapFileHeader>

    /// What the guardian has to know; nil when nothing is kept.
    package func watched(_ origin: OpenedOrigin) -> WatchedOrigin? {
        // Marks of a live device are set while no service runs: nobody has to watch it.
        guard let request, let mapPath = memory.file.path, origin.live == nil else { return nil }
        return WatchedOrigin(
            name: request.name, path: origin.facts.path, isReadOnly: origin.facts.isReadOnly,
            mapPath: mapPath, instance: header.instance)
    }

    // MARK: Open

    /// Finds out what is known of the origin's changes, and maps memory for those to come.
    package static func open(
        _ origin: OpenedOrigin, _ request: TrackingRequest?
    ) throws(AttachError) -> OpenedGeneration {
        let chunkCount = MapLayout.chunkCount(size: origin.facts.size)
        guard chunkCount <= MapLayout.chunkCountMax else {
            throw AttachError(
                .unsuitable,
                "origin \(origin.facts.path) is larger than 1 PiB, the most there may be")
        }
        guard let request else { return try unkept(origin, chunkCount: chunkCount) }
        // What others wrote through the page cache is counted when it reaches the device. A failure
        // is theirs.
        if origin.facts.isBlockDevice, origin.live == nil { _ = fsync(origin.descriptor) }
        guard var record = origin.record() else {
            throw AttachError(
                .failed,
                "origin \(origin.facts.path): what it is cannot be read: "
                    + SystemFile.errorText(errno))
        }
        if let live = origin.live, request.isExclusive {
            record.restDigest = LiveRest.digestAfterStart(origin, live)
        }
        let saved = SavedMap(of: request.name, in: request.stateDirectory)
        let (file, running, death) = try openRunning(request)
        let evidence = GenerationEvidence(
            name: request.name, origin: record, bootID: request.bootID,
            isExclusive: request.isExclusive, saved: saved.header(), running: running,
            death: death, live: origin.live?.finding)
        var attempt = Attempt(
            origin: origin, request: request, record: record, evidence: evidence, file: file,
            savedMap: saved, chunkCount: chunkCount)
        return try attempt.carryOut(GenerationDecision(evidence))
    }

    private static func unkept(
        _ origin: OpenedOrigin, chunkCount: UInt64
    ) throws(AttachError) -> OpenedGeneration {
        guard let file = RunningMapFile.unnamed(),
            case .success(let memory) = ChangeMapMemory.map(file, chunkCount: chunkCount),
            let name = ObjectName("unnamed")
        else {
            throw AttachError(
                .failed, "origin \(origin.facts.path): no memory for the change map")
        }
        let identity = OriginRecord(
            identity: .file(filesystem: 0, inode: 0, birth: .zero),
            state: .unknown(size: origin.facts.size))
        let header = MapFileHeader(
            beginning: Generation(id: .random()), of: name, state: .running,
            size: origin.facts.size, bootID: UniqueID(high: 0, low: 0), instance: .random(),
            origin: identity)
        return OpenedGeneration(
            memory: memory, header: header, status: .unkept, request: nil, reason: .firstAttach,
            saved: .absent)
    }

    /// Opens, or makes, the file of the running map, and reads what it says.
    private static func openRunning(
        _ request: TrackingRequest
    ) throws(AttachError) -> (
        RunningMapFile, Finding<MapFileHeader>, Finding<DeathRecord>
    ) {
        let path = "\(request.runtimeDirectory)/\(request.name).running"
        var isNew = false
        var descriptor = Glibc.open(path, O_RDWR | O_CLOEXEC)
        if descriptor < 0, errno == ENOENT {
            isNew = true
            descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        }
        guard descriptor >= 0 else { throw noRoom(path, errno) }
        switch FileLock.take(descriptor, limitSeconds: ImageLocks.waitSeconds) {
        case .taken: break
        case .heldByThisProcess, .heldBy, .heldByEnded:
            close(descriptor)
            throw AttachError(
                .busy,
                "change map \(path) is in use by another service; name another runtime "
                    + "directory with --runtime-dir")
        case .failed(let errnoValue):
            close(descriptor)
            throw noRoom(path, errnoValue)
        }
        let file = RunningMapFile(path: path, descriptor: descriptor)
        if isNew { return (file, .absent, .absent) }
        return (file, runningHeader(descriptor), deathRecord(descriptor))
    }

    private static func runningHeader(_ descriptor: Int32) -> Finding<MapFileHeader> {
        do throws(MapFileHeader.Damage) {
            return .found(try ChangeMapMemory.header(in: descriptor))
        } catch { return .damaged(error) }
    }

    private static func deathRecord(_ descriptor: Int32) -> Finding<DeathRecord> {
        do throws(MapFileHeader.Damage) {
            return try ChangeMapMemory.deathRecord(in: descriptor).map { .found($0) } ?? .absent
        } catch { return .damaged(error) }
    }

    fileprivate static func noRoom(_ path: String, _ failure: Int32) -> AttachError {
        AttachError(
            .failed,
            "change map \(path) cannot be made (\(SystemFile.errorText(failure))), and "
                + "without it changes would go unnoticed; make room there, or name another "
                + "runtime directory with --runtime-dir")
    }

    // MARK: Admit

    /// Puts the running map in force and uses up what it was made from. After this writes may be
    /// admitted.
    package mutating func admit() throws(AttachError) {
        header.sequence += 1
        memory.write(header)
        guard let request else { return }
        let savedMap = SavedMap(of: request.name, in: request.stateDirectory)
        do throws(Fault) {
            switch saved {
            case .absent: break
            case .found(let header): try savedMap.invalidate(header)
            case .damaged: try savedMap.setAside()
            }
        } catch {
            throw AttachError(
                .failed,
                "change map \(savedMap.path) cannot be marked as in use "
                    + "(\(SystemFile.errorText(error.errnoValue))), so a later start might take "
                    + "it for valid; make the state directory writable")
        }
        memory.clearDeathRecord()
    }

    // MARK: End

    /// Saves the map of a device that nobody uses any more, and removes the running one. Returns
    /// why it was not saved; nil when it was. `descriptor`: of the origin, still held.
    package static func end(
        _ header: MapFileHeader, _ memory: ChangeMapMemory, _ request: TrackingRequest,
        origin: OpenedOrigin, fault: Fault?
    ) -> String? {
        defer { if let path = memory.file.path { unlink(path) } }
        let path = origin.facts.path
        if let fault {
            return "the last flush of \(path) failed (\(SystemFile.errorText(fault.errnoValue)))"
        }
        guard header.state == .running else { return "tracking of its changes was lost" }
        // What was written is on stable storage; this is for the times that go with it.
        if !origin.facts.isReadOnly, fsync(origin.descriptor) != 0 {
            return "\(path) could not be synced (\(SystemFile.errorText(errno)))"
        }
        OriginInspector.waitForNextStamp()
        guard let record = origin.record() else {
            return "\(path) could not be looked at (\(SystemFile.errorText(errno)))"
        }
        var header = header
        header.origin = record
        let rest = request.isExclusive ? origin.live.flatMap { LiveRest(origin, $0) } : nil
        header.origin.restDigest = rest?.digest
        let savedMap = SavedMap(of: request.name, in: request.stateDirectory)
        do throws(Fault) {
            // Nobody may claim the device before the map is saved.
            defer { withExtendedLifetime(rest) {} }
            try savedMap.save(header, memory)
            return nil
        } catch {
            return "\(savedMap.path) could not be written "
                + "(\(SystemFile.errorText(error.errnoValue)))"
        }
    }

    /// Gives up what `open` made and `admit` did not put in force.
    package func abandon() {
        // A map that a killed service left stays for the next attempt.
        if header.sequence == 0, let path = memory.file.path { unlink(path) }
    }

    fileprivate init(
        memory: ChangeMapMemory, header: MapFileHeader, status: GenerationStatus,
        request: TrackingRequest?, reason: NewGenerationReason?, saved: Finding<MapFileHeader>
    ) {
        self.memory = memory
        self.header = header
        self.status = status
        self.request = request
        self.reason = reason
        self.saved = saved
    }
}

/// Carries a decision out; one that cannot be carried out becomes a new generation.
private struct Attempt {
    let origin: OpenedOrigin
    let request: TrackingRequest
    let record: OriginRecord
    let evidence: GenerationEvidence
    let file: RunningMapFile
    let savedMap: SavedMap
    let chunkCount: UInt64
    var saved: Finding<MapFileHeader>

    init(
        origin: OpenedOrigin, request: TrackingRequest, record: OriginRecord,
        evidence: GenerationEvidence, file: RunningMapFile, savedMap: SavedMap, chunkCount: UInt64
    ) {
        self.origin = origin
        self.request = request
        self.record = record
        self.evidence = evidence
        self.file = file
        self.savedMap = savedMap
        self.chunkCount = chunkCount
        saved = evidence.saved
    }

    mutating func carryOut(_ decision: GenerationDecision) throws(AttachError) -> OpenedGeneration {
        switch decision {
        case .new(let reason): return try begin(reason)
        case .continuedFromRunning(let header):
            do throws(MapFileHeader.Damage) {
                let memory = try recovered(header)
                return opened(
                    memory, header,
                    origin.live == nil
                        ? "the service was killed, and the origin is as it was then"
                        : "the service was killed, and its writes were marked all the time")
            } catch { return try begin(.runningDamaged(error)) }
        case .continuedFromSaved(let header):
            let memory = try emptyMemory()
            do throws(SavedMap.LoadFailure) {
                try savedMap.load(header, into: memory)
            } catch {
                switch error {
                case .noRoom(let fault): throw refusal(fault)
                case .damaged(let damage):
                    saved = .damaged(damage)
                    return try begin(.savedDamaged(damage))
                }
            }
            var fresh = header
            fresh.instance = .random()
            fresh.sequence = 0
            let isRestarted = header.bootID != request.bootID
            return opened(
                memory, fresh,
                origin.live == nil
                    ? "the device was detached cleanly, and the origin is as it was then"
                    : isRestarted
                        ? "the machine was restarted, and the device was at rest until it was attached again"
                        : "the service ended cleanly, and its writes were marked all the time")
        }
    }

    private func recovered(
        _ header: MapFileHeader
    ) throws(MapFileHeader.Damage) -> ChangeMapMemory {
        var facts = stat()
        guard fstat(file.descriptor, &facts) == 0 else { throw .unreadable(errno) }
        guard header.chunkCount == chunkCount,
            facts.st_size >= MapLayout.byteCount(chunkCount: chunkCount)
        else { throw .truncated }
        switch ChangeMapMemory.map(file, chunkCount: chunkCount) {
        case .failure(let fault): throw .unreadable(fault.errnoValue)
        case .success(let memory):
            try memory.recover(epoch: header.epoch)
            return memory
        }
    }

    private func begin(_ reason: NewGenerationReason) throws(AttachError) -> OpenedGeneration {
        let memory = try emptyMemory()
        let header = MapFileHeader(
            beginning: Generation(id: .random()), of: request.name, state: .running,
            size: origin.facts.size, bootID: request.bootID, instance: .random(), origin: record)
        return OpenedGeneration(
            memory: memory, header: header, status: GenerationStatus(began: reason),
            request: request, reason: reason, saved: saved)
    }

    private func emptyMemory() throws(AttachError) -> ChangeMapMemory {
        guard ftruncate(file.descriptor, 0) == 0 else {
            throw refusal(Fault(errnoValue: errno))
        }
        switch ChangeMapMemory.map(file, chunkCount: chunkCount) {
        case .success(let memory): return memory
        case .failure(let fault): throw refusal(fault)
        }
    }

    /// The attach fails: a file that holds nothing must not be taken for a map later.
    private func refusal(_ fault: Fault) -> AttachError {
        if let path = file.path { unlink(path) }
        return OpenedGeneration.noRoom(file.path ?? "", fault.errnoValue)
    }

    private func opened(
        _ memory: ChangeMapMemory, _ header: MapFileHeader, _ sentence: String
    ) -> OpenedGeneration {
        var header = header
        header.state = .running
        header.bootID = request.bootID
        header.origin = record
        return OpenedGeneration(
            memory: memory, header: header,
            status: GenerationStatus(isContinued: true, reason: sentence), request: request,
            reason: nil, saved: saved)
    }
}
