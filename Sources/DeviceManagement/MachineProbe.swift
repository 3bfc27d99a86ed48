internal import BlockModel
internal import CLinux
internal import ControlDocuments
internal import DataPlane
internal import Glibc
internal import Host
internal import LiveTracking
internal import Origins
internal import RingIO

/// What this machine offers, and what of it is used; a document for people and scripts.
package struct MachineProbe: Codable, Equatable, Sendable {
    package var kernel: String
    package var ioUring: Ring
    /// `/dev/fuse` can be used.
    package var fuse: Bool
    /// Loop devices can be made.
    package var loop: Bool
    package var facilities: [Facility]
    package var path: Path?

    /// io_uring here.
    package struct Ring: Codable, Equatable, Sendable {
        package var usable: Bool
        /// Optional features that would be used.
        package var features: [String]
        /// Why it is not usable.
        package var reason: String?
    }

    /// Something of the kernel, and what for.
    package struct Facility: Codable, Equatable, Sendable {
        package var name: String
        package var usable: Bool
        package var usedFor: String
        /// Why it is not usable.
        package var reason: String?
    }

    /// An origin here.
    package struct Path: Codable, Equatable, Sendable {
        package var path: String
        /// `file` or `block`.
        package var kind: String
        package var size: UInt64
        /// O_DIRECT works.
        package var direct: Bool
        package var directAlignment: UInt32?
        /// How requests would reach it: `direct`, `buffered` or `inline`.
        package var access: String
        package var rotational: Bool
        /// A block device: it can be tracked while it is in use, or why not.
        package var live: Bool?
        package var liveReason: String?
    }

    /// Looks. Blocks.
    package static func run(path: String?) throws -> MachineProbe {
        let ring = ring()
        return MachineProbe(
            kernel: kernel(), ioUring: ring, fuse: access("/dev/fuse", R_OK | W_OK) == 0,
            loop: access("/dev/loop-control", R_OK | W_OK) == 0, facilities: facilities(ring),
            path: try path.map { try probe($0) })
    }

    private static func kernel() -> String {
        var names = utsname()
        uname(&names)
        return withUnsafeBytes(of: &names.release) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }

    private static func ring() -> Ring {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 1 << 20
        configuration.requestCapacity = 64
        do throws(RingError) {
            let loop = try LoopThread(index: 0, configuration: configuration)
            defer { loop.stopAndJoin() }
            let features = RingFeatures.names.filter { loop.features.contains($0.feature) }
            return Ring(usable: true, features: features.map(\.name), reason: nil)
        } catch {
            return Ring(usable: false, features: [], reason: error.description)
        }
    }

    private static func facilities(_ ring: Ring) -> [Facility] {
        [
            Facility(
                name: "io_uring", usable: ring.usable, usedFor: "all requests",
                reason: ring.reason),
            node("FUSE", "/dev/fuse", "local block devices"),
            node("loop devices", "/dev/loop-control", "local block devices"),
            takeover(),
            node("ublk", "/dev/ublk-control", "nothing: FUSE and loop serve"),
            node("kernel NBD", "/dev/nbd0", "nothing here; its client can use the exports"),
            lockedMemory(),
            liveDevices(),
            Facility(
                name: "PR_SET_IO_FLUSHER", usable: cl_may_flush_io(),
                usedFor: "loops that memory reclaim does not wait for",
                reason: cl_may_flush_io() ? nil : "it needs Linux 5.6 and CAP_SYS_RESOURCE"),
            Facility(
                name: "freezing", usable: geteuid() == 0, usedFor: "consistent filesystems",
                reason: geteuid() == 0 ? nil : "it needs CAP_SYS_ADMIN"),
        ]
    }

    private static func liveDevices() -> Facility {
        let reason = LiveProbe.obstacle()
        return Facility(
            name: "live devices", usable: reason == nil,
            usedFor: "tracking disks that stay in use (BPF)", reason: reason)
    }

    private static func node(_ name: String, _ path: String, _ use: String) -> Facility {
        let isUsable = access(path, R_OK | W_OK) == 0
        let reason = errno
        return Facility(
            name: name, usable: isUsable, usedFor: use,
            reason: isUsable ? nil : "\(path): \(errnoText(reason))")
    }

    /// A planned restart needs nothing of the kernel, one after a kill needs FUSE_NOTIFY_RESEND.
    private static func takeover() -> Facility {
        let numbers = kernel().split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
        let isUsable = numbers.count == 2 && (numbers[0], numbers[1]) >= (6, 9)
        return Facility(
            name: "FUSE_NOTIFY_RESEND", usable: isUsable,
            usedFor: "block devices that outlive a kill of the service",
            reason: isUsable
                ? nil
                : "it needs Linux 6.9; block devices survive a planned restart anyway, but they "
                    + "fail after a kill")
    }

    /// Data waiting to be stored is kept out of swap where the limit allows.
    private static func lockedMemory() -> Facility {
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(__RLIMIT_MEMLOCK.rawValue), &limit)
        let wanted: rlim_t = 64 << 20
        let isUsable = geteuid() == 0 || limit.rlim_cur >= wanted
        return Facility(
            name: "locked memory", usable: isUsable,
            usedFor: "keeping preserved data out of swap",
            reason: isUsable
                ? nil
                : "the limit is \(limit.rlim_cur) bytes, each loop wants \(wanted); see ulimit -l")
    }

    private static func liveness(of path: String) -> (Bool?, String?) {
        var facts = stat()
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK else { return (nil, nil) }
        let reason = LiveProbe.obstacle(of: DeviceNumber(statNumber: UInt64(facts.st_rdev)))
        return (reason == nil, reason)
    }

    private static func probe(_ path: String) throws(ControlError) -> Path {
        let resolved: String
        do throws(HostError) {
            resolved = try resolvedPath(path)
        } catch {
            let message = "\(error); name an existing disk image or block device"
            throw error.errnoValue == EACCES
                ? ControlError(.failed, message) : ControlError(.noSuchFile, message)
        }
        do throws(AttachError) {
            let found = try OriginProbe(path: resolved)
            let (live, liveReason) = liveness(of: resolved)
            return Path(
                path: resolved, kind: found.isBlockDevice ? "block" : "file", size: found.size,
                direct: found.directAlignment != nil, directAlignment: found.directAlignment,
                access: found.accessMode.rawValue, rotational: found.isRotational,
                live: live, liveReason: liveReason)
        } catch { throw ControlError(error) }
    }
}
