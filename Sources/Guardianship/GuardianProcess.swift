package import BlockModel
internal import CLinux
internal import Freezing
internal import Glibc
internal import Host
internal import Origins
internal import RingIO

// The guardian: a small process beside the service that outlives it. It has one descriptor of each
// origin that excludes no other user (O_PATH), and one of each block device's /dev/fuse, which
// keeps that device from failing while no service answers it.
//
//   watching ──(the service's end of the socket closes)──► thaw ──► wait until no request of the
//       │                                                  dead service is in the kernel ──► record
//       │                                                                                      │
//       └──(dismissed)──► holding? ──no──► gone                          holding? ◄────────────┘
//                            │yes                                            │yes
//                            ▼                                               ▼
//                         wait for the next service, which takes all that is held ──► gone
//                            └──(the limit)──► note it, close all: I/O fails ──► gone
//
// Invariants
// - Thawing comes first: a frozen filesystem stops others, and may hold what is read next. One that
//   stands on a block device which is held thaws only once the next service answers, so it is
//   thawed on a thread that nobody waits for for long.
// - What is recorded was looked at twice, two ticks of the clock apart, without a difference.
// - Waiting ends after 30 s; what could not be recorded by then is said to be unknown.
// - What is held is let go by `taken` of the next service or at the limit, by nothing else.

/// How a guardian is started.
package struct GuardianOptions: Sendable {
    /// The lock that the next service waits for.
    package var lockPath: String
    /// Mount points that the service has frozen, one to a line.
    package var frozenListPath: String
    /// Where the next service asks for what is held.
    package var stateDirectory: String
    /// Where it is written down what waits, and what was let go.
    package var runtimeDirectory: String
    /// Longest time for which block devices wait for the next service.
    package var restartLimitSeconds: UInt64

    package init(
        lockPath: String, frozenListPath: String, stateDirectory: String,
        runtimeDirectory: String, restartLimitSeconds: UInt64
    ) {
        self.lockPath = lockPath
        self.frozenListPath = frozenListPath
        self.stateDirectory = stateDirectory
        self.runtimeDirectory = runtimeDirectory
        self.restartLimitSeconds = restartLimitSeconds
    }
}

/// The guardian's own process. Single-threaded, except for the waits for locks of a dead service.
package struct GuardianProcess {
    /// The descriptor of the socket to the service.
    package static let socket: Int32 = 3
    /// Longest wait for the requests of the dead service.
    package static let waitSeconds: UInt64 = 30
    /// How long thawing may take, where it may need the next service, before the guardian
    /// continues.
    private static let thawMilliseconds: UInt64 = 200

    private let options: GuardianOptions
    private let bootID: UniqueID
    private var watches: [ObjectName: DeathWatch] = [:]
    private let held = HeldDevices()
    private var packet = [UInt8](repeating: 0, count: GuardianMessage.byteCountMax)
    /// All that the former guardian held is held here too.
    private var isResponsible = false
    /// Where the next service asks.
    private var waiting: WaitingDevices?

    /// A guardian that watches nothing yet.
    package init(_ options: GuardianOptions, bootID: UniqueID) {
        self.options = options
        self.bootID = bootID
    }

    /// Takes the lock that the next service waits for, says so, and serves until the service is
    /// gone. Returns the exit status.
    package mutating func run() -> Int32 {
        // A signal to the service's group must not stop what is done after it.
        for number in [SIGTERM, SIGINT, SIGHUP, SIGPIPE] { signal(number, SIG_IGN) }
        cl_name_thread("guardian")
        // What the service left open for its children is not for this one. Kernels that cannot
        // do it keep a few descriptors open.
        _ = cl_close_from(Self.socket + 1)
        _ = chdir("/")
        // What keeps block devices alive must not have to be read back from one. Refused where the
        // limit of locked memory is low, which the service says.
        _ = cl_lock_memory()
        let lock = open(options.lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard lock >= 0 else {
            answer("\(options.lockPath): \(SystemFile.errorText(errno))")
            return 1
        }
        // A former guardian that was killed may not have let go yet.
        guard FileLock.take(lock, limitSeconds: Int(Self.waitSeconds)) == .taken else {
            answer("\(options.lockPath): locked by another guardian")
            return 1
        }
        answer(GuardianMessage.accepted)
        let isDead = serve()
        waiting?.begin(held, limitSeconds: options.restartLimitSeconds)
        if isDead {
            thaw()
            recordAll()
        }
        watches = [:]
        close(lock)
        // The service is gone in the middle of a takeover: the former guardian holds all there is.
        guard isResponsible else { return 0 }
        guard let waiting else {
            held.letGo()
            return 0
        }
        return waiting.run(held)
    }

    /// Serves until the service has gone: true when it died.
    private mutating func serve() -> Bool {
        while true {
            var descriptor: Int32 = -1
            let count = cl_receive_packet(Self.socket, &packet, packet.count, &descriptor)
            if count < 0 && errno == EBADMSG {
                answer("the guardian does not understand")
                continue
            }
            guard count > 0 else { return true }
            guard let message = GuardianMessage(Array(packet[..<count])) else {
                if descriptor >= 0 { close(descriptor) }
                answer("the guardian does not understand")
                continue
            }
            if message == .dismiss {
                let stays = held.count > 0 && waiting != nil
                answer(stays ? GuardianMessage.holding : GuardianMessage.accepted)
                if !stays { waiting?.withdraw() }
                return false
            }
            answer(handle(message, descriptor))
        }
    }

    private mutating func handle(_ message: GuardianMessage, _ descriptor: Int32) -> String {
        switch message {
        case .watch(let origin):
            guard let watch = DeathWatch(origin) else {
                return "\(origin.path): \(String(cString: strerror(errno)))"
            }
            watches[origin.name] = watch
        case .forget(let name): watches[name] = nil
        case .hold(let key, let isDrained, let note):
            guard held.hold(key, descriptor: descriptor, isDrained: isDrained, note: note[...])
            else {
                if descriptor >= 0 { close(descriptor) }
                return "the guardian holds \(held.count) block devices and has no room for that"
            }
        case .setDrained(let key, let isDrained):
            guard held.setDrained(key, isDrained) else { return "it is not held" }
        case .release(let key): held.release(key)
        case .adopted:
            isResponsible = true
            waiting = WaitingDevices(options)
            if waiting == nil {
                return "\(options.stateDirectory): \(String(cString: strerror(errno)))"
            }
            waiting?.rehearse()
        case .dismiss: break
        }
        return GuardianMessage.accepted
    }

    private func answer(_ text: String) {
        var bytes = Array(text.utf8)
        // A service that is gone meanwhile is found to be so by the next receive.
        _ = send(Self.socket, &bytes, bytes.count, Int32(MSG_NOSIGNAL))
    }

    /// Thaws what the dead service left frozen; what takes longer is thawed while other things go
    /// on.
    private func thaw() {
        let list = options.frozenListPath
        guard access(list, F_OK) == 0 else { return }
        guard held.count > 0 else {
            FrozenFilesystems.thaw(listedIn: list)
            return
        }
        let ended = Semaphore()
        do throws(HostError) {
            try ServiceThread.start("thaw") {
                // It may wait for a block device that is held, and must not keep it alive.
                _ = cl_own_descriptors()
                FrozenFilesystems.thaw(listedIn: list)
                ended.signal()
            }
        } catch {
            FrozenFilesystems.thaw(listedIn: list)
            return
        }
        _ = ended.wait(until: cl_now_nanoseconds() + Self.thawMilliseconds * 1_000_000)
    }

    private func recordAll() {
        let deadline = cl_now_nanoseconds() + Self.waitSeconds * 1_000_000_000
        let (devices, files) = Self.split(Array(watches.values)) { $0.isBlockDevice }
        // All at once, so that none is free without being locked while another is waited for.
        for watch in files { watch.beginLocking() }
        var free: [DeathWatch] = []
        var late = devices
        while !late.isEmpty {
            let (claimed, held) = Self.split(late) { $0.claimDevice() }
            free += claimed
            late = held
            if late.isEmpty || cl_now_nanoseconds() > deadline { break }
            // The kernel offers no event for the end of another's exclusive use of a device.
            usleep(2000)
        }
        let (locked, lateFiles) = Self.split(files) { $0.endLocking(until: deadline) }
        free += locked
        late += lateFiles
        for watch in late {
            watch.record(
                failure: "after \(Self.waitSeconds) s its requests had not left the kernel, or "
                    + "somebody else had locked it", bootID: bootID)
        }
        OriginInspector.waitForNextStamp()
        for watch in free { watch.look() }
        OriginInspector.waitForNextStamp()
        for watch in free { watch.record(bootID: bootID) }
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
