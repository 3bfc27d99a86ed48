package import BlockModel
internal import ControlDocuments
package import DataPlane
internal import FoundationEssentials
package import FreezePlanning
internal import Freezing
internal import Glibc
internal import Host
package import Logging
internal import Origins
package import RingIO
package import ServiceState
internal import Synchronization

// Freezes filesystems around a cut, for the snapshot registry.
//
// Invariants
// - One take at a time freezes (`takeLock`), from the first call on its filesystems to the last.
// - The list of frozen filesystems is written before the first freeze, and a filesystem leaves it
//   when its thread has gone, that is when its thaw is back.
// - While filesystems may be frozen the take has `freezeLock` alone: who writes files or starts
//   programs shares it, and messages of the log wait.

/// The local block devices of each device at this moment, partitions not needed: those that block
/// attachments made.
package typealias LocalBlockDevices = @Sendable () async -> [ObjectName: Set<DeviceNumber>]

/// Limits of freezing.
package struct FreezeLimits: Sendable {
    /// For writing back what is dirty, before anything is frozen.
    var syncSeconds: UInt64 = 60
    /// From the first freeze until all are frozen, and for one thaw.
    package var freezeMilliseconds: UInt64 = 10_000

    package init(syncSeconds: UInt64 = 60, freezeMilliseconds: UInt64 = 10_000) {
        self.syncSeconds = syncSeconds
        self.freezeMilliseconds = freezeMilliseconds
    }
}

/// What freezing came to, for people.
package struct FreezeSummary: Sendable {
    /// Mount points that were frozen at the cut, in the order of freezing.
    package var frozen: [String] = []
    /// What could not be frozen, and why.
    package var errors: [String] = []
    /// Every image is as its filesystems left it.
    package var isFilesystemConsistent = false

    package init(
        frozen: [String] = [], errors: [String] = [], isFilesystemConsistent: Bool = false
    ) {
        self.frozen = frozen
        self.errors = errors
        self.isFilesystemConsistent = isFilesystemConsistent
    }
}

/// Freezes filesystems; see the head of this file.
package actor FilesystemFreezing {
    private let listPath: String
    private let freezeLock: AsyncReadWriteLock
    private let log: PausableLog
    private let blocking: BlockingPool
    private let cuts: CutThread
    private let limits: FreezeLimits
    private let localBlockDevices: LocalBlockDevices
    private let logger: Logger
    private let takeLock = AsyncReadWriteLock()
    /// Filesystems whose threads are stuck in a call, by number: where those are mounted that may
    /// be frozen when they come back, nothing for others.
    private var stuck: [DeviceNumber: [UInt8]?] = [:]

    package init(
        listPath: String, freezeLock: AsyncReadWriteLock, log: PausableLog, blocking: BlockingPool,
        cuts: CutThread,
        limits: FreezeLimits, localBlockDevices: @escaping LocalBlockDevices, logger: Logger
    ) {
        self.listPath = listPath
        self.freezeLock = freezeLock
        self.log = log
        self.blocking = blocking
        self.cuts = cuts
        self.limits = limits
        self.localBlockDevices = localBlockDevices
        self.logger = logger
    }

    /// Chooses what to freeze, or refuses.
    package func plan(
        _ selection: FreezeSelection, devices: [ObjectName], protected: [FreezeExclusion]
    ) async throws -> FreezePlan {
        let local = await localBlockDevices()
        let blockDevices = devices.map { local[$0] ?? [] }
        // Any filesystem that is mounted may hang, as one of a server that is gone.
        return try await blocking.runOnNamedPath(.surveys, "the list of mounted filesystems") {
            () -> Result<FreezePlan, ControlError> in
            do throws(ControlError) {
                return .success(try Self.plan(selection, blockDevices, protected))
            } catch { return .failure(error) }
        }.get()
    }

    private static func plan(
        _ selection: FreezeSelection, _ blockDevices: [Set<DeviceNumber>],
        _ protected: [FreezeExclusion]
    ) throws(ControlError) -> FreezePlan {
        var selection = selection
        for index in selection.mountPoints.indices {
            do throws(HostError) {
                selection.mountPoints[index] = try resolvedPath(selection.mountPoints[index])
            } catch {
                throw ControlError(
                    error.errnoValue == ENOENT ? .notFound : .failed,
                    "mount point \(error); name a mounted filesystem with --freeze")
            }
        }
        let isIdle = selection.mountPoints.isEmpty && blockDevices.allSatisfy(\.isEmpty)
        var filesystems: [MountedFilesystem] = []
        var elsewhere: [ForeignFilesystem] = []
        if !isIdle {
            do throws(AttachError) {
                filesystems = try MountSurvey.filesystems()
                elsewhere = try MountSurvey.elsewhere()
            } catch { throw ControlError(error) }
        }
        do throws(FreezeRefusal) {
            return try FreezePlan(
                selection, filesystems: filesystems, elsewhere: elsewhere,
                blockDevices: blockDevices,
                protected: protected)
        } catch { throw refusal(of: error) }
    }

    private static func refusal(of refusal: FreezeRefusal) -> ControlError {
        switch refusal {
        case .notMounted(let mountPoint):
            ControlError(
                .notMounted,
                "nothing is mounted at \(mountPoint); name a mount point with --freeze (findmnt "
                    + "lists them)")
        case .holds(let mountPoint, let what):
            ControlError(
                .unsuitable,
                "the filesystem at \(mountPoint) holds \(what), which must stay writable during "
                    + "the take; leave it out with --freeze none or other mount points, or move "
                    + "one of the two elsewhere")
        case .tooMany(let count):
            ControlError(
                .unsuitable,
                "\(count) filesystems to freeze: \(FreezePlan.targetCountMax) at most; name "
                    + "those that matter with --freeze")
        }
    }

    // -- the cut

    /// Makes a cut for which nothing is frozen.
    package func makeCutAlone(_ members: [CutMember], isBase: Bool) async -> CutOutcome {
        await cuts.makeCut(members, isBase: isBase)
    }

    /// Writes back what is dirty in the plan's filesystems and freezes nothing; returns what could
    /// not be written back.
    package func writeBack(_ plan: FreezePlan) async throws -> [String] {
        guard !plan.targets.isEmpty else { return [] }
        await takeLock.lockExclusive()
        defer { takeLock.unlock() }
        var summary = FreezeSummary()
        for (_, freezer) in try await prepare(plan, isBestEffort: true, &summary) {
            await gone(freezer)
        }
        return summary.errors
    }

    /// Makes a cut with the plan's filesystems frozen. When one cannot be frozen nothing is done,
    /// or, with `isBestEffort`, the cut is made all the same.
    package func makeCut(
        _ members: [CutMember], isBase: Bool, _ plan: FreezePlan, isBestEffort: Bool,
        holding hold: CutHold? = nil
    ) async throws -> (outcome: CutOutcome, summary: FreezeSummary) {
        var summary = FreezeSummary()
        summary.errors = plan.outOfReach.map(Self.error)
        for error in summary.errors { logger.warning("\(error)") }
        guard !plan.targets.isEmpty else {
            return (
                await cuts.makeCut(members, isBase: isBase, holding: hold), summary
            )
        }
        await takeLock.lockExclusive()
        defer { takeLock.unlock() }
        let prepared = try await prepare(plan, isBestEffort: isBestEffort, &summary)
        let outcome: CutOutcome
        do {
            outcome = try await makeCut(
                members, isBase: isBase, prepared.map(\.freezer), isBestEffort: isBestEffort,
                holding: hold, &summary)
        } catch {
            for (_, freezer) in prepared { await gone(freezer) }
            throw error
        }
        try conclude(outcome, prepared, plan, &summary)
        return (outcome, summary)
    }

    /// Throws when freezing called the cut off, else says what it came to.
    private func conclude(
        _ outcome: CutOutcome, _ prepared: [(index: Int, freezer: FilesystemFreezer)],
        _ plan: FreezePlan, _ summary: inout FreezeSummary
    ) throws {
        var frozen: Set<Int> = []
        var reason: ControlError?
        for (position, result) in outcome.freeze.results.enumerated() {
            let target = prepared[position].freezer.target
            switch result {
            case .thawed, .notThawed:
                frozen.insert(prepared[position].index)
                summary.frozen.append(target.name)
            case .notTried, .failed, .tooSlow, .thawedByOthers: break
            }
            guard let error = Self.error(of: result, target.name, limits) else { continue }
            logger.warning("\(error)")
            summary.errors.append(error.message)
            if Self.callsOff(result) { reason = reason ?? error }
        }
        if outcome.isCalledOffByFreeze, let reason { throw reason }
        summary.isFilesystemConsistent = plan.isFilesystemConsistent(frozen: frozen)
    }

    /// The part during which filesystems are frozen.
    private func makeCut(
        _ members: [CutMember], isBase: Bool, _ freezers: [FilesystemFreezer],
        isBestEffort: Bool, holding hold: CutHold?, _ summary: inout FreezeSummary
    ) async throws -> CutOutcome {
        guard !freezers.isEmpty else {
            return await cuts.makeCut(members, isBase: isBase, holding: hold)
        }
        let job = FreezeJob(
            freezers, isBestEffort: isBestEffort,
            freezeLimitNanoseconds: limits.freezeMilliseconds * 1_000_000,
            thawLimitNanoseconds: limits.freezeMilliseconds * 1_000_000)
        await freezeLock.lockExclusive()
        defer { freezeLock.unlock() }
        try await replaceList(
            stuck.values.compactMap(\.self)
                + freezers.compactMap { $0.target.mounts.first?.path })
        log.pause()
        let outcome = await cuts.makeCut(
            members, isBase: isBase, freezing: job, holding: hold)
        let dropped = log.resume()
        if dropped > 0 { logger.warning("\(dropped) message(s) of a freeze were dropped") }
        for (index, freezer) in freezers.enumerated() {
            let result = outcome.freeze.results.isEmpty ? .notTried : outcome.freeze.results[index]
            switch result {
            case .notTried, .failed, .thawed, .thawedByOthers: await gone(freezer)
            case .tooSlow, .notThawed: goneLater(freezer, mayBeFrozen: true)
            }
        }
        do {
            try await replaceList(stuck.values.compactMap(\.self))
        } catch {
            // Too long a list does no harm: thawing what is not frozen does nothing.
            logger.error("\(error)")
        }
        return outcome
    }

    private func replaceList(_ mountPoints: [[UInt8]]) async throws {
        let listPath = listPath
        let failure = await blocking.run {
            FrozenFilesystems.replace(listPath, with: mountPoints)
        }
        guard let failure else { throw ControlError.tooManyOperations }
        guard failure == 0 else {
            throw ControlError(
                .failed,
                "the list of frozen filesystems, \(listPath), cannot be written "
                    + "(\(errnoText(failure))), so nothing is frozen; repair the runtime directory, "
                    + "or use --freeze none")
        }
    }

    // -- threads of filesystems

    /// Opens and syncs the plan's filesystems. What cannot be is left out with `isBestEffort`, else
    /// it is thrown. `index`: of the target in the plan.
    private func prepare(
        _ plan: FreezePlan, isBestEffort: Bool, _ summary: inout FreezeSummary
    ) async throws -> [(index: Int, freezer: FilesystemFreezer)] {
        var freezers: [FilesystemFreezer?] = []
        var errors: [ControlError] = []
        for target in plan.targets {
            do throws(ControlError) {
                freezers.append(try freezer(of: target))
            } catch {
                freezers.append(nil)
                errors.append(error)
            }
        }
        let answers = Preparation(count: freezers.count)
        for (index, freezer) in freezers.enumerated() {
            if let freezer {
                freezer.prepare { answers.ended(index, $0) }
            } else {
                answers.ended(index, 0)
            }
        }
        let failures = await answers.all(within: limits.syncSeconds)
        var prepared: [(index: Int, freezer: FilesystemFreezer)] = []
        for (index, freezer) in freezers.enumerated() {
            guard let freezer else { continue }
            if failures[index] == 0 {
                prepared.append((index, freezer))
                continue
            }
            errors.append(Self.unprepared(freezer.target.name, failures[index], limits))
            if failures[index] == nil {
                goneLater(freezer, mayBeFrozen: false)
            } else {
                await gone(freezer)
            }
        }
        if let error = errors.first, !isBestEffort {
            for (_, freezer) in prepared { await gone(freezer) }
            throw error
        }
        for error in errors { logger.warning("\(error)") }
        summary.errors += errors.map(\.message)
        return prepared
    }

    private func freezer(
        of target: FreezePlan.Target
    ) throws(ControlError) -> FilesystemFreezer {
        guard stuck[target.device] == nil else {
            throw ControlError(
                .busy,
                "the filesystem at \(target.name) has not answered since an earlier take: "
                    + "its disk is slow or hangs; try again later, or without it")
        }
        do throws(RingError) {
            return try FilesystemFreezer(target, listPath: listPath)
        } catch { throw ControlError(.failed, "\(target.name) cannot be frozen: \(error)") }
    }

    /// Ends the thread of a filesystem that is in no call any more.
    private func gone(_ freezer: FilesystemFreezer) async {
        await withCheckedContinuation { continuation in
            freezer.dismiss { continuation.resume() }
        }
    }

    /// Lets the thread of a filesystem end when its call returns; until then it is in the list.
    private func goneLater(_ freezer: FilesystemFreezer, mayBeFrozen: Bool) {
        stuck[freezer.target.device] = .some(
            mayBeFrozen ? freezer.target.mounts.first?.path : nil)
        freezer.dismiss { Task { await self.cameBack(freezer) } }
    }

    private func cameBack(_ freezer: FilesystemFreezer) async {
        await freezeLock.lockExclusive()
        defer { freezeLock.unlock() }
        stuck[freezer.target.device] = nil
        logger.info("the filesystem at \(freezer.target.name) has answered again and is thawed")
        do {
            try await replaceList(stuck.values.compactMap(\.self))
        } catch { logger.error("\(error)") }
    }
}
