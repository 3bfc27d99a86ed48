internal import CLinux
internal import Glibc
internal import Host

// Mounts of the one-file filesystems. These calls do not wait for an answer of ours: the kernel
// greets a FUSE server in the background, and a lazy unmount asks it nothing.

/// The connection to the kernel of one mount.
struct FuseChannel: Sendable {
    /// The open /dev/fuse, non-blocking. When it closes, all that the kernel waits for fails.
    let descriptor: Int32
    /// Can be read when messages wait. An operation in a ring keeps its file open as long as the
    /// ring is mapped, hence until the last thread of a killed process is gone; that thread may be
    /// one that waits for this very connection. So rings poll this one instead of `descriptor`.
    let watch: Int32

    /// Watches an open /dev/fuse that is mounted: before that there is nothing to wait for in it.
    static func watching(_ descriptor: Int32) throws(BlockExportError) -> FuseChannel {
        let watch = cl_watch(descriptor)
        guard watch >= 0 else {
            throw BlockExportError(
                .failed, "/dev/fuse cannot be watched: \(SystemFile.errorText(errno))")
        }
        return FuseChannel(descriptor: descriptor, watch: watch)
    }

    func close() {
        Glibc.close(watch)
        Glibc.close(descriptor)
    }
}

/// A one-file filesystem that is mounted.
struct FuseMount: Sendable {
    /// Where it is mounted; it exists for this mount alone.
    let directory: String
    /// Path of the file in it.
    let file: String
    let channel: FuseChannel

    /// An open /dev/fuse, to be mounted.
    static func openDevice() throws(BlockExportError) -> Int32 {
        let descriptor = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else {
            throw BlockExportError(
                .failed,
                "/dev/fuse: \(SystemFile.errorText(errno)); local block devices need FUSE "
                    + "(modprobe fuse) and root; NBD needs neither")
        }
        return descriptor
    }

    /// Mounts an open /dev/fuse, which it takes over, at `directory`, which is made for it, mode
    /// 0700, and must not exist.
    static func mount(
        _ descriptor: Int32, at directory: String, fileName: String
    ) throws(BlockExportError) -> FuseMount {
        do throws(BlockExportError) {
            guard mkdir(directory, 0o700) == 0 else {
                throw BlockExportError(.failed, "\(directory): \(SystemFile.errorText(errno))")
            }
            guard cl_fuse_mount(descriptor, directory, UInt32(Fuse.dataByteCountMax)) == 0 else {
                throw BlockExportError(
                    .failed,
                    "FUSE cannot be mounted at \(directory): \(SystemFile.errorText(errno)); "
                        + "mounting needs CAP_SYS_ADMIN")
            }
            return FuseMount(
                directory: directory, file: directory + "/" + fileName,
                channel: try FuseChannel.watching(descriptor))
        } catch {
            close(descriptor)
            unmount(directory)
            throw error
        }
    }

    /// Takes the mount out of sight, and away with its last user. What the kernel still wants of
    /// its session, which has ended or is that of a process that cannot die, fails at once.
    static func unmount(_ directory: String) {
        // EINVAL: somebody else has unmounted it.
        umount2(directory, Int32(MNT_FORCE) | Int32(MNT_DETACH))
        rmdir(directory)
    }
}
