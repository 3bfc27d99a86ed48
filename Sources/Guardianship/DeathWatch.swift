internal import BlockModel
internal import CLinux
internal import ChangeTracking
internal import Generations
internal import Glibc
internal import Origins
internal import RingIO

/// The guardian's watch over one origin.
final class DeathWatch {
    private let origin: WatchedOrigin
    /// Names the file or device without opening it.
    private let place: Int32
    private let map: Int32
    let isBlockDevice: Bool
    /// Opened, and locked once no request of the dead service is left.
    private var descriptor: Int32 = -1
    private var lockWait: LockWait?
    private var inspected: OriginRecord?

    /// Nil with errno when the origin or the map cannot be opened.
    init?(_ origin: WatchedOrigin) {
        self.origin = origin
        place = open(origin.path, cl_o_path | O_CLOEXEC)
        var facts = stat()
        guard place >= 0, fstat(place, &facts) == 0 else { return nil }
        isBlockDevice = facts.st_mode & S_IFMT == S_IFBLK
        map = open(origin.mapPath, O_RDWR | O_CLOEXEC)
        guard map >= 0 else {
            let failure = errno
            close(place)
            errno = failure
            return nil
        }
    }

    deinit {
        close(place)
        close(map)
        if descriptor >= 0 { close(descriptor) }
    }

    // An origin is idle once the last request of the dead service has left the kernel: its lock, or
    // its exclusive use, is released then. The lock taken here keeps others out until the end.

    /// Of a file: begins to wait for its lock.
    func beginLocking() {
        descriptor = reopen()
        guard descriptor >= 0 else { return }
        lockWait = LockWait(origin.isReadOnly ? LOCK_SH : LOCK_EX, on: descriptor)
    }

    /// Whether the file became idle before `deadline`.
    func endLocking(until deadline: UInt64) -> Bool {
        lockWait?.wait(until: deadline) ?? false
    }

    /// Of a block device: whether it is idle now.
    func claimDevice() -> Bool {
        descriptor = reopen(O_EXCL | Int32(cl_o_direct))
        guard descriptor >= 0 else { return false }
        // What is left in the page cache is counted when it reaches the device. The writers are
        // gone who would care for a failure.
        _ = fsync(descriptor)
        return true
    }

    private func reopen(_ flags: Int32 = 0) -> Int32 {
        open("/proc/self/fd/\(place)", O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags)
    }

    /// Looks at the idle origin.
    func look() { inspected = OriginInspector.record(of: descriptor, probe: descriptor) }

    /// Looks again, and records what was seen if it has not changed.
    func record(bootID: UniqueID) {
        guard let inspected, let again = OriginInspector.record(of: descriptor, probe: descriptor)
        else {
            return record(failure: "it could not be looked at", bootID: bootID)
        }
        guard inspected == again else {
            return record(
                failure: "somebody else changed it while it was looked at", bootID: bootID)
        }
        write(.origin(again), bootID)
    }

    /// Records why nothing is known.
    func record(failure: String, bootID: UniqueID) { write(.failed(failure), bootID) }

    private func write(_ finding: DeathRecord.Finding, _ bootID: UniqueID) {
        var bytes = [UInt8](repeating: 0, count: MapFileHeader.byteCount)
        do {
            var span = bytes.mutableSpan
            var raw = span.mutableBytes
            DeathRecord(instance: origin.instance, bootID: bootID, finding: finding)
                .encode(into: &raw)
        }
        // A failure leaves no record, which the next service takes for what it is.
        _ = writeAll(bytes, to: map, at: MapLayout.deathRecordByteOffset)
    }
}
