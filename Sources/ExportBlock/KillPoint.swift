internal import Glibc

/// Where tests have the service die, in place of a kill that hits such an instant by chance:
/// `STILLPOINT_DIE_AT=STEP:N`, at that step of one in N requests.
struct KillPoint {
    /// The steps of a request.
    enum Step: String {
        /// It was read from the kernel.
        case read
        /// The origin has done it.
        case done
        /// Its reply is composed.
        case composed
        /// Its reply was written.
        case answered
    }

    private let step: Step
    private let oneIn: UInt32

    /// What the environment says; nil outside such tests.
    static func armed() -> KillPoint? {
        guard let text = getenv("STILLPOINT_DIE_AT") else { return nil }
        let parts = String(cString: text).split(separator: ":")
        guard parts.count == 2, let step = Step(rawValue: String(parts[0])),
            let oneIn = UInt32(parts[1]), oneIn > 0
        else { return nil }
        return KillPoint(step: step, oneIn: oneIn)
    }

    /// A request is at a step.
    func reached(_ step: Step) {
        guard step == self.step, UInt32.random(in: 0..<oneIn) == 0 else { return }
        kill(getpid(), SIGKILL)
    }
}
