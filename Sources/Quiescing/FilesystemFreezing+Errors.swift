internal import ControlDocuments
internal import FreezePlanning
internal import Glibc
internal import Host
internal import Synchronization

// Why filesystems were not frozen, for people; and the wait until they are ready to be.

extension FilesystemFreezing {
    /// What a result means for people; nil when it is not an error.
    static func error(
        of result: FreezeResult, _ name: String, _ limits: FreezeLimits
    ) -> ControlError? {
        let seconds = "\(Double(limits.freezeMilliseconds) / 1000) s"
        switch result {
        case .thawed, .notTried: return nil
        case .failed(let fault): return refused(name, fault.errnoValue)
        case .tooSlow:
            return ControlError(
                .busy,
                "the filesystem at \(name) was not frozen within \(seconds), and is thawed as "
                    + "soon as its freeze returns; try again when its disk is less busy, or "
                    + "without it")
        case .notThawed(let fault):
            return ControlError(
                .failed,
                "the filesystem at \(name) was not thawed (\(errnoText(fault.errnoValue))); "
                    + "thaw it with `fsfreeze --unfreeze \(name)`")
        case .thawedByOthers:
            return ControlError(
                .busy,
                "somebody else thawed the filesystem at \(name) during the take, so the images "
                    + "are crash-consistent only")
        }
    }

    /// The message about a filesystem in another mount namespace.
    static func error(of place: FreezePlan.OutOfReach) -> String {
        "the filesystem at \(place.name) is mounted only in the mount namespace of process "
            + "\(place.processID), so it was not frozen and its image is crash-consistent only; freeze it "
            + "there from --pre and --post hooks (nsenter --mount --target \(place.processID) "
            + "fsfreeze), or mount it here too"
    }

    /// Whether a take without best effort ends because of it.
    static func callsOff(_ result: FreezeResult) -> Bool {
        switch result {
        case .failed, .tooSlow: true
        case .notTried, .thawed, .notThawed, .thawedByOthers: false
        }
    }

    private static func refused(_ name: String, _ reason: Int32) -> ControlError {
        switch reason {
        case EBUSY:
            ControlError(
                .busy,
                "the filesystem at \(name) is frozen already by somebody else; try again when it "
                    + "is thawed (`fsfreeze --unfreeze \(name)`)")
        case EOPNOTSUPP, ENOTTY:
            ControlError(
                .unsuitable,
                "the filesystem at \(name) is of a type that cannot be frozen; use --freeze none, "
                    + "or --freeze-best-effort to take the snapshot without it")
        case EPERM:
            ControlError(
                .failed,
                "the service may not freeze the filesystem at \(name): run it as root or with "
                    + "CAP_SYS_ADMIN, or use --freeze none")
        default:
            ControlError(
                .failed,
                "the filesystem at \(name) could not be frozen (\(errnoText(reason))); repair it, "
                    + "or use --freeze-best-effort to take the snapshot without it")
        }
    }

    /// Why a filesystem could not be opened and synced; `reason` nil: not within its limit.
    static func unprepared(
        _ name: String, _ reason: Int32?, _ limits: FreezeLimits
    ) -> ControlError {
        switch reason {
        case nil:
            ControlError(
                .busy,
                "the filesystem at \(name) could not be written back within "
                    + "\(limits.syncSeconds) s; try again when its disk is less busy, or without it"
            )
        case ESTALE:
            ControlError(
                .busy,
                "the filesystem at \(name) was unmounted while the snapshot was being taken; try "
                    + "again")
        case .some(let reason):
            ControlError(
                .failed,
                "the filesystem at \(name) could not be written back (\(errnoText(reason))); "
                    + "repair it, or use --freeze-best-effort to take the snapshot without it")
        }
    }
}

/// Answers of several threads, waited for with a limit.
final class Preparation: Sendable {
    private struct State {
        var answers: [Int32?]
        var waiter: CheckedContinuation<[Int32?], Never>?
        var isOver = false
    }

    private let state: Mutex<State>

    init(count: Int) { state = Mutex(State(answers: Array(repeating: nil, count: count))) }

    /// One of them has ended, with an errno value or 0.
    func ended(_ index: Int, _ failure: Int32) {
        resume { state in
            state.answers[index] = failure
            return state.answers.allSatisfy { $0 != nil }
        }
    }

    /// All answers; nil for those that did not come in time. Once only.
    func all(within seconds: UInt64) async -> [Int32?] {
        let timer = Task {
            // Cancelled when all have answered: then there is nothing left to resume.
            try? await Task.sleep(for: .seconds(seconds))
            resume { _ in true }
        }
        defer { timer.cancel() }
        return await withCheckedContinuation { continuation in
            resume { state in
                state.waiter = continuation
                return state.isOver || state.answers.allSatisfy { $0 != nil }
            }
        }
    }

    /// Changes the state, and answers who waits if `body` says that it is time.
    private func resume(_ body: (inout State) -> Bool) {
        let (waiter, answers) = state.withLock { state in
            guard body(&state) else {
                return (CheckedContinuation<[Int32?], Never>?.none, state.answers)
            }
            state.isOver = true
            defer { state.waiter = nil }
            return (state.waiter, state.answers)
        }
        waiter?.resume(returning: answers)
    }
}
