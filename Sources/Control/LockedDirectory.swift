internal import Glibc

/// A directory that no other service uses as long as the object lives.
final class LockedDirectory: Sendable {
    /// Absolute, symbolic links resolved.
    let path: String
    private let descriptor: Int32

    /// Makes it where it is missing, for this user alone, and locks it. Blocks.
    init(making directory: String) throws(ControlError) {
        do throws(SystemFailure) {
            try makePrivateDirectory(directory)
            path = try resolvedPath(directory)
        } catch {
            throw ControlError(.failed, "\(error); see --runtime-dir")
        }
        let descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw ControlError(.failed, "\(path): \(errnoText(errno)); see --runtime-dir")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw ControlError(
                .busy, "\(path) is in use by another service; give each its own --runtime-dir")
        }
        self.descriptor = descriptor
    }

    deinit { close(descriptor) }
}
