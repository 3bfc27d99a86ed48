internal import CLinux
internal import Glibc
internal import RingIO

/// What this machine offers; a document for people and scripts.
package struct MachineProbe: Codable, Equatable, Sendable {
    package var kernel: String
    package var ioUring: Ring
    /// `/dev/fuse` can be used.
    package var fuse: Bool
    /// Loop devices can be made.
    package var loop: Bool
    /// Loop threads may allocate without waiting for I/O that they have to serve themselves
    /// (PR_SET_IO_FLUSHER, which needs CAP_SYS_RESOURCE).
    package var ioFlusher: Bool
    package var path: Path?

    /// io_uring here.
    package struct Ring: Codable, Equatable, Sendable {
        package var usable: Bool
        /// Optional features that would be used.
        package var features: [String]
        /// Why it is not usable.
        package var reason: String?
    }

    /// An origin here.
    package struct Path: Codable, Equatable, Sendable {
        package var path: String
        /// O_DIRECT works.
        package var direct: Bool
    }

    /// Looks. Blocks.
    package static func run(path: String?) throws -> MachineProbe {
        var names = utsname()
        uname(&names)
        let kernel = withUnsafeBytes(of: &names.release) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
        let (ring, ioFlusher) = ring()
        return MachineProbe(
            kernel: kernel, ioUring: ring, fuse: access("/dev/fuse", R_OK | W_OK) == 0,
            loop: access("/dev/loop-control", R_OK | W_OK) == 0, ioFlusher: ioFlusher,
            path: try path.map { try probe($0) })
    }

    private static func ring() -> (Ring, ioFlusher: Bool) {
        var configuration = LoopConfiguration()
        configuration.bufferPoolBytes = 1 << 20
        configuration.requestCapacity = 64
        do throws(RingError) {
            let loop = try LoopThread(index: 0, configuration: configuration)
            defer { loop.stopAndJoin() }
            let features = RingFeatures.names.filter { loop.features.contains($0.feature) }
            return (
                Ring(usable: true, features: features.map(\.name), reason: nil), loop.isIOFlusher
            )
        } catch {
            return (Ring(usable: false, features: [], reason: error.description), false)
        }
    }

    private static func probe(_ path: String) throws -> Path {
        do throws(SystemFailure) {
            let resolved = try resolvedPath(path)
            let file = try Descriptor(opening: resolved, O_RDONLY)
            var facts = cl_file_facts()
            guard cl_file_facts(file.number, &facts) == 0 else {
                throw SystemFailure(subject: resolved, errnoValue: errno)
            }
            return Path(
                path: resolved, direct: facts.direct_known && facts.direct_offset_alignment > 0)
        } catch {
            throw ControlError(
                error.errnoValue == ENOENT ? .notFound : .failed,
                "\(error); name an existing disk image or block device")
        }
    }
}
