internal import CLinux
package import CopyPlanning
internal import Glibc
package import Origins

/// Looks at a block device without using it.
package enum DiskLook {
    /// Which disk it is, and its bytes; nil for what is not a block device or cannot be opened.
    package static func state(ofPath path: String) -> (state: DiskState, size: UInt64)? {
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

extension DiskState {
    /// As it was seen.
    package init(_ disk: TargetSurvey.Disk) {
        self.init(
            identity: disk.identity, boot: disk.boot, sequence: disk.sequence,
            touchedSectors: disk.touchedSectors, besideSectors: disk.besideSectors,
            backing: disk.backing.map {
                Backing(
                    size: $0.size, modifiedNanoseconds: $0.modifiedNanoseconds,
                    changedNanoseconds: $0.changedNanoseconds)
            })
    }
}
