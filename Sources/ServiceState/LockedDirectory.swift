package import ControlDocuments
internal import Glibc
internal import Host

/// A directory that no other service uses as long as the object lives.
package final class LockedDirectory: Sendable {
    let path: String
    // Of the directory or a file in it; carries the lock.
    private let descriptor: Int32
    /// Longest wait for the last of a killed service to leave the kernel.
    private static let waitSeconds = 30

    /// Makes the directory where it is missing, for this user alone, and locks it, or `file` in it.
    /// `name` and `option` say in messages what it is and how to choose another. Blocks.
    init(
        making path: String, file: String? = nil, name: String, option: String
    ) throws(ControlError) {
        self.path = path
        do throws(HostError) {
            try makePrivateDirectory(path)
        } catch {
            throw ControlError(
                .failed, "\(name) \(path) cannot be made (\(error)); name another with \(option)")
        }
        if let file {
            descriptor = open("\(path)/\(file)", O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        } else {
            descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        }
        guard descriptor >= 0 else {
            let failure = HostError(path, errno)
            throw ControlError(
                .failed,
                "\(name) cannot be used (\(failure)); see its permissions or name another with "
                    + option)
        }
        switch FileLock.take(descriptor, limitSeconds: Self.waitSeconds) {
        case .taken: return
        case .heldByThisProcess, .heldBy, .heldByEnded:
            close(descriptor)
            throw ControlError(
                .busy,
                "\(name) \(path) is used by another service; stop that one or name another "
                    + "directory with \(option)")
        case .failed(let errnoValue):
            close(descriptor)
            throw ControlError(
                .failed,
                "\(name) \(path) cannot be locked (\(SystemFile.errorText(errnoValue))); name "
                    + "another with \(option)")
        }
    }

    private static let runtimeLockName = "service.lock"

    /// The file that a service keeps locked in its runtime directory.
    package static func runtimeLock(in directory: String) -> String {
        "\(directory)/\(runtimeLockName)"
    }

    /// The runtime directory of a service. A file in it is locked, for the directory may be that of
    /// the state too; its guardian has another. Blocks.
    package convenience init(runtime path: String) throws(ControlError) {
        try self.init(
            making: path, file: Self.runtimeLockName, name: "runtime directory",
            option: "--runtime-dir")
    }

    deinit { close(descriptor) }
}
