internal import CLinux
internal import Glibc

// What an open origin is now: it may have grown, and its path may name something else.

/// What the path of an attached origin names now.
package enum OriginName: String, Sendable {
    /// The origin.
    case origin
    /// Another file or device.
    case replaced
    /// Nothing.
    case deleted
}

extension OpenedOrigin {
    /// Bytes that it has now; fails with an errno value. Blocks.
    package func currentSize() -> Result<UInt64, OriginSizeError> {
        var found = CLinux.cl_file_facts()
        guard cl_file_facts(descriptor, &found) == 0 else { return .failure(.init(errno)) }
        var now = found.size
        if facts.isBlockDevice, cl_block_device_size(descriptor, &now) != 0 {
            return .failure(.init(errno))
        }
        return .success(now)
    }

    /// What its path names now; nil when that cannot be found out. Blocks.
    package func currentName() -> OriginName? {
        var (named, own) = (stat(), stat())
        guard fstat(descriptor, &own) == 0 else { return nil }
        guard stat(facts.path, &named) == 0 else {
            return errno == ENOENT || errno == ENOTDIR ? .deleted : nil
        }
        // Nodes of a block device come and go; which device they name is what counts.
        let isSame =
            facts.isBlockDevice
            ? named.st_rdev == own.st_rdev
            : named.st_dev == own.st_dev && named.st_ino == own.st_ino
        return isSame ? .origin : .replaced
    }
}

/// Why the size of an origin cannot be read.
package struct OriginSizeError: Error {
    /// Positive errno value.
    package let errnoValue: Int32

    init(_ errnoValue: Int32) { self.errnoValue = errnoValue }
}
