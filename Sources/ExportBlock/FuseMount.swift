internal import CLinux
internal import Glibc

// Mounts of the one-file filesystems. None of these calls waits for an answer of ours: the kernel
// greets a FUSE server in the background, and a lazy unmount asks it nothing.

/// A one-file filesystem that is mounted.
struct FuseMount: Sendable {
    /// Where it is mounted; it exists for this mount alone.
    let directory: String
    /// Path of the file in it.
    let file: String
    /// The open /dev/fuse.
    let descriptor: Int32

    /// Mounts at `directory`, which is made for it, mode 0700, and must not exist.
    static func mount(
        at directory: String, fileName: String
    ) throws(BlockExportError) -> FuseMount {
        let descriptor = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            throw BlockExportError(
                .failed,
                "/dev/fuse: \(BlockExportError.text(errno)); local block devices need FUSE "
                    + "(modprobe fuse) and root; NBD needs neither")
        }
        guard mkdir(directory, 0o700) == 0 else {
            let failure = errno
            close(descriptor)
            throw BlockExportError(.failed, "\(directory): \(BlockExportError.text(failure))")
        }
        guard cl_fuse_mount(descriptor, directory, UInt32(Fuse.dataByteCountMax)) == 0 else {
            let failure = errno
            close(descriptor)
            rmdir(directory)
            throw BlockExportError(
                .failed,
                "FUSE cannot be mounted at \(directory): \(BlockExportError.text(failure)); "
                    + "mounting needs CAP_SYS_ADMIN")
        }
        return FuseMount(
            directory: directory, file: directory + "/" + fileName, descriptor: descriptor)
    }

    /// Takes the mount out of sight, and away with its last user.
    static func unmount(_ directory: String) {
        // EINVAL: somebody else has unmounted it.
        umount2(directory, Int32(MNT_DETACH))
        rmdir(directory)
    }
}
