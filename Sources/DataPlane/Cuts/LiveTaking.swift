internal import CLinux
internal import RingIO

/// Takes marks while filesystems are frozen, on the thread that makes cuts.
enum LiveTaking {
    /// Takes the marks of all live members; false when it takes longer than the limit.
    static func takeFrozen(_ members: [CutMember], _ limitNanoseconds: UInt64) -> Bool {
        let live = members.filter { $0.device.isLive }
        guard !live.isEmpty else { return true }
        let answers = Answers<Void>()
        for member in live {
            Task {
                _ = await member.device.takeMarks()
                answers.add(())
            }
        }
        let deadline = cl_now_nanoseconds() + limitNanoseconds
        return live.allSatisfy { _ in answers.next(before: deadline) != nil }
    }
}
