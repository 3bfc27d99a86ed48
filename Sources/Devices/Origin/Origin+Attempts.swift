internal import BlockModel
internal import Glibc
internal import RingIO

// Operations that the kernel interrupted, or had no room for: they are tried again, at once at
// first, then after a pause each, and not forever.

extension Origin {
    /// Attempts that follow each other at once, and all there are: some two seconds.
    static let attemptsAtOnce: UInt8 = 16
    private static let attemptsMax: UInt8 = 216
    private static let pauseNanoseconds: UInt64 = 10_000_000
    /// A timer names the request in its lower bits and the step above them.
    private static let stepShift: UInt32 = 24

    static func isAgain(_ result: Int32) -> Bool { result == -EINTR || result == -EAGAIN }

    /// The operation of this step has to be tried again.
    func tryAgain(_ index: RequestIndex, _ step: OriginStep) {
        let request = requests.pointer(to: index)
        request.pointee.attempts += 1
        switch request.pointee.attempts {
        case ..<Self.attemptsAtOnce: resume(index, step)
        case ..<Self.attemptsMax:
            precondition(
                index.rawValue >> Self.stepShift == 0, "a loop has less than 2^24 requests")
            _ = loop.schedule(
                after: Self.pauseNanoseconds, self,
                token: UInt32(step.rawValue) << Self.stepShift | index.rawValue)
        default: giveUp(index, step)
        }
    }

    /// The pause before an attempt is over.
    func pauseEnded(token: UInt32) {
        guard let step = OriginStep(rawValue: UInt8(token >> Self.stepShift)) else {
            preconditionFailure("a timer of an unknown step")
        }
        resume(RequestIndex(token & ((1 << Self.stepShift) - 1)), step)
    }

    private func resume(_ index: RequestIndex, _ step: OriginStep) {
        switch step {
        case .data: continueData(index)
        case .headSector: readHeadSector(index)
        case .tailSector: readTailSector(index)
        case .middle, .zeroPiece: continueMiddle(index)
        case .edgeRead, .edgeWrite: startZeroing(index)
        case .synchronize, .closingSynchronize:
            preconditionFailure("a synchronisation belongs to no single request")
        }
    }

    private func giveUp(_ index: RequestIndex, _ step: OriginStep) {
        switch step {
        case .data: dataFinished(index, .inputOutput)
        case .headSector, .tailSector, .middle, .zeroPiece, .edgeRead, .edgeWrite:
            writeStepsFinished(index, .inputOutput, isStable: false)
        case .synchronize, .closingSynchronize:
            preconditionFailure("a synchronisation belongs to no single request")
        }
    }
}
