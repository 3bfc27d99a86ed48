internal import CLinux
internal import Glibc
internal import Host
internal import RingIO

// Loop devices over our own files. Every call here may wait for I/O that the service serves, so it
// runs in a process of its own (`BlockErrand`).
//
// Anybody may detach a loop device (`losetup -d`), and the next one to ask for a free one gets its
// number. So what is behind it is compared before anything is done to it, with the device open:
// the kernel exchanges the backing file of no device that somebody has open.

/// How a loop device is wanted.
package struct LoopNodeRequest: Equatable, Sendable {
    let file: String
    /// What losetup shows.
    let name: String
    let sectorBytes: UInt32
    let isReadOnly: Bool
    let scansPartitions: Bool

    package init(
        file: String, name: String, sectorBytes: UInt32, isReadOnly: Bool, scansPartitions: Bool
    ) {
        self.file = file
        self.name = name
        self.sectorBytes = sectorBytes
        self.isReadOnly = isReadOnly
        self.scansPartitions = scansPartitions
    }
}

/// A loop device that is set up.
struct LoopNode: Sendable {
    /// `/dev/loopN`.
    let path: String
    /// As the kernel numbers devices.
    let deviceNumber: UInt64

    /// Most loop devices tried: between asking for a free one and taking it, somebody else may, and
    /// one that somebody has open exclusively is called free all the time.
    private static let attemptCountMax = 64
    /// How long users that are not known for keeping it open are waited for, in steps.
    private static let waitStepMicroseconds: UInt32 = 50_000
    private static let waitStepCount = 40

    // MARK: Set up

    /// Sets a free loop device up over `request.file`.
    static func configure(
        _ request: LoopNodeRequest
    ) throws(BlockExportError) -> LoopNode {
        let access = request.isReadOnly ? O_RDONLY : O_RDWR
        let backing = open(request.file, access | Int32(cl_o_direct) | O_CLOEXEC)
        guard backing >= 0 else { throw failure(request.file, errno) }
        defer { close(backing) }
        let control = open("/dev/loop-control", O_RDWR | O_CLOEXEC)
        guard control >= 0 else {
            throw BlockExportError(
                .failed,
                "/dev/loop-control: \(SystemFile.errorText(errno)); local block devices need the "
                    + "loop driver (modprobe loop) and root; NBD needs neither")
        }
        defer { close(control) }
        var flags = UInt32(cl_loop_direct)
        if request.isReadOnly { flags |= UInt32(cl_loop_read_only) }
        if request.scansPartitions { flags |= UInt32(cl_loop_partitions) }
        var lowest: Int32 = 0
        for _ in 0..<attemptCountMax {
            var number = cl_loop_get_free(control)
            if number >= 0, number < lowest { number = cl_loop_add(control, lowest) }
            guard number >= 0 else { throw failure("/dev/loop-control", errno) }
            let path = "/dev/loop\(number)"
            let node = open(path, access | O_CLOEXEC)
            guard node >= 0 else { throw failure(path, errno) }
            defer { close(node) }
            guard
                cl_loop_configure(node, backing, request.sectorBytes, flags, request.name) == 0
            else {
                if errno == EBUSY {
                    lowest = number + 1
                    continue
                }
                throw failure(path, errno)
            }
            return try finish(node, path, request)
        }
        throw BlockExportError(
            .busy, "no loop device is free: other programs took each one first; try again")
    }

    private static func finish(
        _ node: Int32, _ path: String, _ request: LoopNodeRequest
    ) throws(BlockExportError) -> LoopNode {
        var status = stat()
        var flags: UInt32 = 0
        guard fstat(node, &status) == 0, cl_loop_flags(node, &flags) == 0 else {
            let reason = errno
            cl_loop_clear(node)
            throw failure(path, reason)
        }
        guard flags & UInt32(cl_loop_direct) != 0 else {
            cl_loop_clear(node)
            throw BlockExportError(
                .failed,
                "\(path): the loop driver refuses direct I/O with sectors of "
                    + "\(request.sectorBytes) bytes; a newer kernel is needed")
        }
        // A loop device keeps the partitions of what it stood on before, where that went badly.
        cl_drop_partitions(node)
        if request.scansPartitions, cl_add_partitions(node) < 0 {
            let reason = errno
            cl_loop_clear(node)
            throw failure("\(path): its partitions", reason)
        }
        return LoopNode(path: path, deviceNumber: UInt64(status.st_rdev))
    }

    private static func failure(_ subject: String, _ errnoValue: Int32) -> BlockExportError {
        BlockExportError(.failed, "\(subject): \(SystemFile.errorText(errnoValue))")
    }

    // MARK: Take away

    /// Writes back what the kernel holds and takes the backing file away. Refused as busy while
    /// anybody else has the device or a partition open. Returns the errno value of the write-back,
    /// 0 when it went well: a device whose last data is lost is gone all the same. A device of this
    /// number over another file is left alone: ours was detached behind our back.
    static func detach(
        _ path: String, over file: LoopBackingFile
    ) throws(BlockExportError) -> Int32 {
        let node = open(path, O_RDONLY | O_CLOEXEC | O_EXCL)
        guard node >= 0 else {
            // ENXIO, ENOENT: somebody else has detached it.
            let reason = errno
            if reason == ENXIO || reason == ENOENT { return 0 }
            guard reason == EBUSY else { throw failure(path, reason) }
            if isOverAnother(path, than: file) { return 0 }
            throw inUse(path)
        }
        defer { close(node) }
        guard file.isBehind(node, path) else { return 0 }
        let flushFailure = fsync(node) == 0 ? 0 : errno
        // The service that asked is gone, and the next one continues with the device.
        guard ErrandProcess.hasService else { throw inUse(path) }
        for step in 0..<waitStepCount {
            guard cl_loop_clear(node) == 0 else {
                if errno == ENXIO { return flushFailure }
                throw failure(path, errno)
            }
            // With other users the kernel only plans it for the time when they have left. Then
            // the flag says so, and the device still answers.
            var flags: UInt32 = 0
            guard cl_loop_flags(node, &flags) == 0, cl_loop_keep(node) == 0 else {
                return flushFailure
            }
            // udev and the like look at a device for a moment.
            if step < waitStepCount - 1 { usleep(waitStepMicroseconds) }
        }
        throw inUse(path)
    }

    private static func inUse(_ path: String) -> BlockExportError {
        BlockExportError(
            .busy,
            "block device \(path) is in use: it or a partition of it is mounted or open; unmount "
                + "it and close it first")
    }

    /// Whether another file is behind the device by now, or none.
    private static func isOverAnother(_ path: String, than file: LoopBackingFile) -> Bool {
        let node = open(path, O_RDONLY | O_CLOEXEC)
        guard node >= 0 else { return false }
        defer { close(node) }
        return !file.isBehind(node, path)
    }

    /// Takes `file` away from the loop device now, or as soon as its users have left. False when
    /// another file is behind it: then nothing is done.
    static func abandon(_ path: String, over file: LoopBackingFile) -> Bool {
        let node = open(path, O_RDONLY | O_CLOEXEC)
        guard node >= 0 else { return false }
        defer { close(node) }
        guard file.isBehind(node, path) else { return false }
        // ENXIO: it is gone already.
        cl_loop_clear(node)
        return true
    }

    /// Takes the size of the file over after the target has grown.
    static func updateSize(_ path: String, over file: LoopBackingFile) -> Bool {
        let node = open(path, O_RDONLY | O_CLOEXEC)
        guard node >= 0 else { return false }
        defer { close(node) }
        return file.isBehind(node, path) && cl_loop_update_size(node) == 0
    }
}
