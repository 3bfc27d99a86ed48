internal import Glibc

/// The claim on the runtime directory: one service at a time keeps its change maps there.
final class RuntimeDirectory: Sendable {
    // Descriptor of a file in it; carries the lock. Its guardian has a lock of its own.
    private let lock: Int32

    /// Makes the directory where missing and locks it. Blocks.
    init(claiming path: String) throws(ControlError) {
        do throws(SystemFailure) {
            try makePrivateDirectory(path)
        } catch {
            throw ControlError(
                .failed, "runtime directory cannot be made (\(error)); see --runtime-dir")
        }
        lock = open(path + "/service.lock", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else {
            let failure = SystemFailure(subject: path, errnoValue: errno)
            throw ControlError(
                .failed, "runtime directory cannot be used: \(failure); see --runtime-dir")
        }
        guard flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            close(lock)
            throw ControlError(
                .busy,
                "runtime directory \(path) is used by another service; name another with "
                    + "--runtime-dir")
        }
    }

    deinit { close(lock) }
}
