package import BlockModel
internal import CLinux
internal import Glibc

// The guardian: a small process beside the service that outlives it. It holds no socket that
// anybody else could reach, and one descriptor of each origin that keeps nobody from anything
// (O_PATH).
//
//   watching ──(the service's end of the socket closes)──► thaw ──► wait until no request of the
//       │                                                  dead service is in the kernel ──► record
//       └──(dismissed)──► gone
//
// Invariants
// - Thawing comes first: a frozen filesystem stops others, and may hold what is read next.
// - What is recorded was looked at twice, two ticks of the clock apart, without a difference.
// - Waiting ends after 30 s; what could not be recorded by then is said to be unknown.

/// The guardian's own process. Single-threaded, but for the waits for locks of a dead service.
package struct GuardianProcess {
    /// The descriptor of the socket to the service.
    package static let socket: Int32 = 3
    /// Longest wait for the requests of the dead service.
    package static let waitSeconds: UInt64 = 30

    private let frozenListPath: String
    private let bootID: UniqueID
    private var watches: [ObjectName: DeathWatch] = [:]

    /// `frozenListPath`: mount points that the service has frozen, one to a line.
    package init(frozenListPath: String, bootID: UniqueID) {
        self.frozenListPath = frozenListPath
        self.bootID = bootID
    }

    /// Takes the lock that the next service waits for, says so, and serves until the service is
    /// gone. Returns the exit status.
    package mutating func run(lockPath: String) -> Int32 {
        // Whoever stops the service's group must not stop what is done after it.
        for number in [SIGTERM, SIGINT, SIGHUP, SIGPIPE] { signal(number, SIG_IGN) }
        cl_name_thread("guardian")
        // What the service left open for its children is not for this one. Kernels that cannot
        // do it keep a few descriptors open.
        _ = cl_close_from(Self.socket + 1)
        _ = chdir("/")
        let lock = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0, flock(lock, LOCK_EX | LOCK_NB) == 0 else {
            answer("\(lockPath): \(String(cString: strerror(errno)))")
            return 1
        }
        answer(GuardianMessage.accepted)
        var packet = [UInt8](repeating: 0, count: GuardianMessage.byteCountMax)
        while true {
            let count = recv(Self.socket, &packet, packet.count, 0)
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { break }
            guard let message = GuardianMessage(Array(packet[..<count])) else {
                answer("the guardian does not understand")
                continue
            }
            if message == .dismiss {
                answer(GuardianMessage.accepted)
                return 0
            }
            answer(handle(message))
        }
        FrozenFilesystems.thaw(listedIn: frozenListPath)
        recordAll()
        return 0
    }

    private mutating func handle(_ message: GuardianMessage) -> String {
        switch message {
        case .watch(let origin):
            guard let watch = DeathWatch(origin) else {
                return "\(origin.path): \(String(cString: strerror(errno)))"
            }
            watches[origin.name] = watch
        case .forget(let name): watches[name] = nil
        case .dismiss: break
        }
        return GuardianMessage.accepted
    }

    private func answer(_ text: String) {
        var bytes = Array(text.utf8)
        // A service that is gone meanwhile is found to be so by the next receive.
        _ = send(Self.socket, &bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    private func recordAll() {
        let deadline = cl_now_nanoseconds() + Self.waitSeconds * 1_000_000_000
        let (devices, files) = Self.split(Array(watches.values)) { $0.isBlockDevice }
        // All at once, so that none is free without being locked while another is waited for.
        for watch in files { watch.beginLocking() }
        var quiet: [DeathWatch] = []
        var late = devices
        while !late.isEmpty {
            let (free, held) = Self.split(late) { $0.claimDevice() }
            quiet += free
            late = held
            if late.isEmpty || cl_now_nanoseconds() > deadline { break }
            // The kernel offers no event for the end of another's exclusive use of a device.
            usleep(2000)
        }
        let (locked, lateFiles) = Self.split(files) { $0.endLocking(until: deadline) }
        quiet += locked
        late += lateFiles
        for watch in late {
            watch.record(
                failure: "after \(Self.waitSeconds) s its requests had not left the kernel, or "
                    + "somebody else had locked it", bootID: bootID)
        }
        OriginSighting.waitForNextStamp()
        for watch in quiet { watch.look() }
        OriginSighting.waitForNextStamp()
        for watch in quiet { watch.record(bootID: bootID) }
    }

    private static func split(
        _ watches: [DeathWatch], _ isFirst: (DeathWatch) -> Bool
    ) -> ([DeathWatch], [DeathWatch]) {
        var split: ([DeathWatch], [DeathWatch]) = ([], [])
        for watch in watches {
            if isFirst(watch) { split.0.append(watch) } else { split.1.append(watch) }
        }
        return split
    }
}
