internal import CLinux
internal import Glibc

// Locks that other users of disk images honour.
//
// - flock on the whole file: ours, and what many tools take.
// - The byte-range locks of QEMU's file driver (docs/system/images.rst and block/file-posix.c
//   describe them): byte 100 + p is held shared by who uses permission p, byte 200 + p by who
//   does not let others use p. Conflicts are found by looking, not by waiting.
//
// Both belong to the open file description, so they last until the last request of a killed
// service has left the kernel.

enum ImageLocks {
    /// QEMU's permissions that matter here: bit numbers of BLK_PERM_*.
    private enum Permission: Int64 {
        case consistentRead = 0
        case write = 1
        case resize = 3

        var usedByte: Int64 { 100 + rawValue }
        var unsharedByte: Int64 { 200 + rawValue }
    }

    /// Longest wait for the requests of a killed service to leave the kernel.
    private static let waitSeconds = 30

    static func take(
        _ descriptor: Int32, path: String, isReadOnly: Bool, facts: cl_file_facts
    ) throws(AttachError) {
        try takeWholeFile(descriptor, path: path, isReadOnly: isReadOnly, facts: facts)
        switch takeBytes(descriptor, isReadOnly: isReadOnly) {
        case .taken: return
        case .inUse:
            throw AttachError(
                .busy,
                "origin \(path) is in use by QEMU or one of its tools; stop that first, or "
                    + "protect the disk from inside it")
        case .failed(let errnoValue):
            throw AttachError(
                .failed, "origin \(path): locking: \(OriginOpener.text(of: errnoValue))")
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
        // After taking, look: whoever comes second sees the first, and both may see each other.
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
        _ descriptor: Int32, path: String, isReadOnly: Bool, facts: cl_file_facts
    ) throws(AttachError) {
        let operation = (isReadOnly ? LOCK_SH : LOCK_EX) | LOCK_NB
        let deadline = cl_now_nanoseconds() + UInt64(waitSeconds) * 1_000_000_000
        while flock(descriptor, operation) != 0 {
            let failure = errno
            guard failure == EWOULDBLOCK || failure == EINTR else {
                throw AttachError(
                    .failed, "origin \(path): locking: \(OriginOpener.text(of: failure))")
            }
            if let holder = livingHolder(facts) {
                throw AttachError(
                    .busy, "origin \(path) is locked by \(holder); stop that first")
            }
            guard cl_now_nanoseconds() < deadline else {
                throw AttachError(
                    .busy,
                    "origin \(path) is still locked after \(waitSeconds) s by a process that has "
                        + "ended; its last requests have not left the kernel: check the disk")
            }
            // Not waited for (`LockWait`) but asked again: who holds it meanwhile is part of the
            // answer.
            usleep(20_000)
        }
    }

    /// Names the living process that holds a flock on the file, as /proc/locks tells; nil when
    /// the one that took it has ended.
    private static func livingHolder(_ facts: cl_file_facts) -> String? {
        let hex = { (value: UInt32) in
            let text = String(value, radix: 16)
            return text.count < 2 ? "0" + text : text
        }
        let file = "\(hex(facts.device_major)):\(hex(facts.device_minor)):\(facts.inode)"
        for line in (SystemFile.read("/proc/locks") ?? "").split(separator: "\n") {
            let fields = line.split(separator: " ")
            // 1: FLOCK  ADVISORY  WRITE 4242 fd:00:12345 0 EOF
            guard fields.count >= 6, fields[1] == "FLOCK", fields[5] == file else { continue }
            guard let process = Int32(fields[4]), process > 0 else { continue }
            if process == getpid() { return "this service: it is attached already" }
            guard cl_process_lives(process) else { continue }
            let name = SystemFile.read("/proc/\(process)/comm")?.split(separator: "\n").first
            return "process \(process) (\(name ?? "unnamed"))"
        }
        return nil
    }
}
