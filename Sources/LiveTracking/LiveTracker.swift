internal import Host
internal import BlockModel
internal import ChangeTracking
internal import CLiveTracking
internal import Glibc
internal import Synchronization

// Tracks disks in use: loads the programs when the first disk is tracked, takes over what an
// earlier service left pinned, and gives everything back with the last. All of it may block.
//
// Invariants
// - `track` returns when every write that begins later is marked; those in flight then are marked
//   at their completion.
// - A set of marks that may lack one gets another token before its loss is reported.
// - Disks whose marks are pinned are taken over together with the programs, so that what the
//   programs missed meanwhile is held against each of them.

/// Tracks disks in use; one for each service.
package final class LiveTracker: Sendable {
    private struct State {
        var directory: String?
        var programs: LivePrograms?
        var disks: [UInt64: LiveDisk] = [:]
        /// Why marks are not what an earlier service may have left.
        var finding = LiveFinding.absent
    }

    private let runtimeDirectory: String
    private let state = Mutex(State())

    /// Where the kernel's BPF filesystem is mounted as a rule.
    private static let commonDirectory = "/sys/fs/bpf"

    package init(runtimeDirectory: String) { self.runtimeDirectory = runtimeDirectory }

    // MARK: Track

    /// Tracks a device that is suitable, and says what was found of its marks.
    package func track(_ place: LivePlace) throws(LiveError) -> LiveWindow {
        guard getenv("STILLPOINT_NO_LIVE") == nil else {
            throw LiveError(
                .unsuitable, "live devices are switched off (STILLPOINT_NO_LIVE is set)")
        }
        let window = try state.withLock { state throws(LiveError) in
            try prepare(&state)
            let sequence = place.facts.diskSequence
            let disk: LiveDisk
            if let known = state.disks[sequence] {
                disk = known
            } else {
                disk = try begin(place, &state)
                state.disks[sequence] = disk
            }
            disk.windowCount += 1
            return LiveWindow(place, of: disk, tracker: self)
        }
        // Marks that an earlier service left have no gap, and its successor must not be slow to start.
        if !place.facts.hasRequests, window.disk.finding != .kept {
            _ = place.awaitWritesInFlight()
        }
        // Pinned by an earlier service for a disk that grew meanwhile.
        if let error = window.grow(to: place.diskSectorCount) {
            untrack(window)
            throw error
        }
        return window
    }

    /// Ends the tracking of a device; its marks are gone.
    package func untrack(_ window: LiveWindow) {
        state.withLock { state in
            let disk = window.disk
            disk.windowCount -= 1
            guard disk.windowCount == 0 else { return }
            forget(disk, &state)
            if state.disks.isEmpty { end(&state) }
        }
    }

    /// Ends what nobody took up since the service began: the disks of devices that are not
    /// remembered any more.
    package func forgetUnused() {
        state.withLock { state in
            for disk in state.disks.values where disk.windowCount == 0 { forget(disk, &state) }
            if state.programs != nil, state.disks.isEmpty { end(&state) }
        }
    }

    private func begin(_ place: LivePlace, _ state: inout State) throws(LiveError) -> LiveDisk {
        guard let programs = state.programs, let directory = state.directory else {
            preconditionFailure("programs are loaded before a disk is tracked")
        }
        let sequence = place.facts.diskSequence
        if !place.facts.hasRequests { try programs.attachBios() }
        let bitmap = try LiveBitmap.make(
            sequence: sequence, sectorCount: place.diskSectorCount,
            isMapped: !place.facts.hasRequests, token: .random()
        ).get()
        let path = Self.pin(sequence, in: directory)
        unlink(path)
        var failure = clt_pin(bitmap.descriptor, path)
        if failure == 0 { failure = programs.slots.put(bitmap) }
        guard failure == 0 else {
            unlink(path)
            guard failure != -ENOSPC else {
                throw LiveError(
                    .failed,
                    "\(place.facts.disk) cannot be tracked: \(state.disks.count) disks are, and the "
                        + "table of the programs has no free place for this one")
            }
            throw LiveError(
                .failed,
                "marks of \(place.facts.disk) cannot be set "
                    + "(\(SystemFile.errorText(-failure)))")
        }
        return LiveDisk(place.diskNumber, bitmap, finding: state.finding)
    }

    private func forget(_ disk: LiveDisk, _ state: inout State) {
        guard let programs = state.programs, let directory = state.directory else { return }
        let sequence = disk.bitmap.sequence
        state.disks[sequence] = nil
        programs.slots.remove(disk: sequence)
        unlink(Self.pin(sequence, in: directory))
        if !state.disks.values.contains(where: { $0.bitmap.isMapped }) { programs.detachBios() }
    }

    private func end(_ state: inout State) {
        guard let directory = state.directory else { return }
        LivePrograms.removePins(in: directory)
        state.programs = nil
        state.directory = nil
        state.finding = .absent
        if directory == ownMount {
            // In use by somebody who looks at it: it stays, empty.
            _ = umount2(directory, Int32(MNT_DETACH))
        }
        rmdir(directory)
    }

    // Names of pins have no dots.
    private static func pin(_ sequence: UInt64, in directory: String) -> String {
        "\(directory)/disk-\(sequence)"
    }

    // MARK: Programs

    private func prepare(_ state: inout State) throws(LiveError) {
        guard state.programs == nil else { return }
        let directory = try chooseDirectory()
        state.directory = directory
        if let programs = LivePrograms.pinned(in: directory) {
            state.programs = programs
            adoptDisks(programs, directory, &state)
            return
        }
        // The kernel's own have dots in their names, and ours never.
        let wasEmpty = SystemFile.names(in: directory).allSatisfy { $0.contains(".") }
        state.finding = wasEmpty ? .absent : .programsGone
        LivePrograms.removePins(in: directory)
        state.programs = try LivePrograms.load(into: directory)
    }

    private var ownMount: String { "\(runtimeDirectory)/bpf" }

    private func chooseDirectory() throws(LiveError) -> String {
        if clt_is_bpf_filesystem(ownMount) { return ownMount }
        if clt_is_bpf_filesystem(Self.commonDirectory) {
            // FNV-1a of the runtime directory: services do not meet.
            let hash = runtimeDirectory.utf8.reduce(UInt64(0xCBF2_9CE4_8422_2325)) {
                ($0 ^ UInt64($1)) &* 0x100_0000_01B3
            }
            let path = "\(Self.commonDirectory)/stillpoint-\(String(hash, radix: 16))"
            if mkdir(path, 0o700) == 0 || errno == EEXIST { return path }
        }
        guard mkdir(ownMount, 0o700) == 0 || errno == EEXIST else {
            throw LiveError(
                .failed, "\(ownMount) cannot be made (\(SystemFile.errorText(errno)))")
        }
        let failure = clt_mount_bpf_filesystem(ownMount)
        guard failure == 0 else {
            rmdir(ownMount)
            throw LiveError(
                .failed,
                "no BPF filesystem can be used for pins (\(SystemFile.errorText(-failure))); mount one "
                    + "on \(Self.commonDirectory), with a directory that the service may write to")
        }
        return ownMount
    }

    /// Takes over the marks that are pinned.
    private func adoptDisks(
        _ programs: LivePrograms, _ directory: String, _ state: inout State
    ) {
        for name in SystemFile.names(in: directory) where name.hasPrefix("disk-") {
            let path = "\(directory)/\(name)"
            let descriptor = clt_open_pinned(path)
            guard descriptor >= 0, let bitmap = LiveBitmap.adopt(descriptor),
                name == "disk-\(bitmap.sequence)"
            else {
                unlink(path)
                continue
            }
            guard let number = Self.disk(ofSequence: bitmap.sequence) else {
                // The disk is gone, and no other one ever has its number.
                unlink(path)
                continue
            }
            state.disks[bitmap.sequence] = LiveDisk(number, bitmap, finding: .kept)
        }
        programs.slots.keep(Set(state.disks.keys))
        for disk in state.disks.values { examine(disk, programs, state.disks) }
    }

    private static func disk(ofSequence sequence: UInt64) -> DeviceNumber? {
        for name in SystemFile.names(in: "/sys/block")
        where SystemFile.number(in: "/sys/block/\(name)/diskseq") == sequence {
            return SystemFile.line(of: "/sys/block/\(name)/dev").flatMap { DeviceNumber($0) }
        }
        return nil
    }

    // MARK: Doubt

    /// Looks whether the disk's marks are complete; else they are a new set from here on.
    func examine(_ disk: LiveDisk) {
        state.withLock { state in
            guard let programs = state.programs else { return }
            examine(disk, programs, state.disks)
        }
    }

    private func examine(
        _ disk: LiveDisk, _ programs: LivePrograms, _ disks: [UInt64: LiveDisk]
    ) {
        let misses = programs.misses
        let known = programs.knownMisses
        if misses != known {
            for other in disks.values {
                if misses.requests > known.requests {
                    other.renew(.skipped(misses.requests - known.requests))
                } else if misses.bios > known.bios, other.bitmap.isMapped {
                    other.renew(.skipped(misses.bios - known.bios))
                }
            }
            programs.knownMisses = misses
        }
        if LivePlace.sequence(ofDisk: disk.number) != disk.bitmap.sequence {
            disk.renew(.otherDisk)
        } else if !programs.marks(disk.bitmap) {
            disk.renew(.detached)
            // Refused: the next look finds it again.
            if disk.bitmap.isMapped { try? programs.attachBios() }
            _ = programs.slots.put(disk.bitmap)
            // As when tracking begins: no program marks the completion of these.
            if disk.bitmap.isMapped { _ = LivePlace(of: disk.number)?.awaitWritesInFlight() }
        } else if let doubt = disk.bitmap.doubt {
            disk.renew(doubt)
        }
    }

    /// Takes over a larger size of a disk, with all marks.
    func grow(_ disk: LiveDisk, to sectorCount: UInt64) -> LiveError? {
        state.withLock { state -> LiveError? in
            guard let programs = state.programs, let directory = state.directory else { return nil }
            let old = disk.bitmap
            guard sectorCount > old.sectorCount else { return nil }
            let made = LiveBitmap.make(
                sequence: old.sequence, sectorCount: sectorCount, isMapped: old.isMapped,
                token: old.token)
            let larger: LiveBitmap
            switch made {
            case .success(let bitmap): larger = bitmap
            case .failure(let error): return error
            }
            let path = Self.pin(old.sequence, in: directory)
            unlink("\(path)-new")
            var failure = clt_pin(larger.descriptor, "\(path)-new")
            if failure == 0 { failure = programs.slots.put(larger) }
            guard failure == 0 else {
                unlink("\(path)-new")
                return LiveError(
                    .failed,
                    "marks of a disk that grew cannot be set (\(SystemFile.errorText(-failure)))")
            }
            // No program uses the former any more.
            larger.add(old)
            if rename("\(path)-new", path) != 0 {
                // The pin is of the former marks, whose token must not be taken for theirs.
                old.renew()
            }
            disk.replace(larger)
            return nil
        }
    }

    // MARK: Measuring

    /// Measured run times of the programs: empty when none are loaded.
    package var programTimes: [(name: String, nanoseconds: UInt64, runs: UInt64)] {
        state.withLock { $0.programs?.times ?? [] }
    }
}
