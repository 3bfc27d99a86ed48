internal import CLinux
internal import Glibc
internal import Host

// Locks that other users of disk images honour.
//
// - flock on the whole file: ours, and what many tools take.
// - The byte-range locks of QEMU's file driver (docs/system/images.rst and block/file-posix.c
//   describe them): byte 100 + p is held shared by who uses permission p, byte 200 + p by who
//   does not let others use p. Conflicts are found by looking, not by waiting.
//
// Both belong to the open file description, so they last until the last request of a killed
// service has left the kernel.

/// Locks that keep other users of a disk image away.
package enum ImageLocks {
    /// QEMU's permissions that matter here: bit numbers of BLK_PERM_*.
    private enum Permission: Int64 {
        case consistentRead = 0
        case write = 1
        case resize = 3

        var usedByte: Int64 { 100 + rawValue }
        var unsharedByte: Int64 { 200 + rawValue }
    }

    /// Longest wait for the requests of a killed service to leave the kernel.
    package static let waitSeconds = 30

    /// Takes both kinds of locks on an open origin. Blocks.
    static func take(_ descriptor: Int32, path: String, isReadOnly: Bool) throws(AttachError) {
        try takeWholeFile(descriptor, path: path, isReadOnly: isReadOnly)
        switch takeBytes(descriptor, isReadOnly: isReadOnly) {
        case .taken: return
        case .inUse:
            throw AttachError(
                .busy,
                "origin \(path) is in use by QEMU or one of its tools; stop that first, or "
                    + "protect the disk from inside it")
        case .failed(let errnoValue):
            throw AttachError(
                .failed, "origin \(path): locking: \(SystemFile.errorText(errnoValue))")
        }
    }

    /// What came of taking QEMU's locks.
    enum ByteLocks {
        case taken
        /// QEMU or one of its tools uses the file in a way that does not go with ours.
        case inUse
        case failed(errnoValue: Int32)
    }

    /// Takes QEMU's locks for reading alone, or for reading, writing and resizing.
    static func takeBytes(_ descriptor: Int32, isReadOnly: Bool) -> ByteLocks {
        let used: [Permission] =
            isReadOnly ? [.consistentRead] : [.consistentRead, .write, .resize]
        let unshared: [Permission] = [.write, .resize]
        for byte in used.map(\.usedByte) + unshared.map(\.unsharedByte) {
            guard cl_lock_byte_shared(descriptor, byte) == 0 else {
                return .failed(errnoValue: errno)
            }
        }
        // After taking, look: the second one sees the first, and both may see each other.
        for byte in used.map(\.unsharedByte) + unshared.map(\.usedByte) {
            switch cl_byte_is_locked(descriptor, byte) {
            case 0: continue
            case 1: return .inUse
            default: return .failed(errnoValue: errno)
            }
        }
        return .taken
    }

    private static func takeWholeFile(
        _ descriptor: Int32, path: String, isReadOnly: Bool
    ) throws(AttachError) {
        switch FileLock.take(descriptor, isShared: isReadOnly, limitSeconds: waitSeconds) {
        case .taken: return
        case .heldByThisProcess:
            throw AttachError(
                .busy, "origin \(path) is attached already; detach the other device first")
        case .heldBy(let holder):
            throw AttachError(.busy, "origin \(path) is locked by \(holder); stop that first")
        case .heldByEnded:
            throw AttachError(
                .busy,
                "origin \(path) is still locked after \(waitSeconds) s by a process that has "
                    + "ended; its last requests have not left the kernel: check the disk")
        case .failed(let errnoValue):
            throw AttachError(
                .failed, "origin \(path): locking: \(SystemFile.errorText(errnoValue))")
        }
    }
}
