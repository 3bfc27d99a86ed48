internal import CLinux
internal import DataPlane
internal import Glibc

/// Looks at a block device without using it.
enum DiskLook {
    /// Which disk it is, and its bytes; nil for what is not a block device or cannot be opened.
    static func state(ofPath path: String) -> (state: DiskState, size: UInt64)? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var size: UInt64 = 0
        guard let disk = TargetSurvey.disk(ofDescriptor: descriptor),
            cl_block_device_size(descriptor, &size) == 0
        else { return nil }
        return (DiskState(disk), size)
    }
}
