internal import BlockModel
internal import CLinux
internal import DataPlane
internal import Glibc
internal import Logging
internal import RingIO
internal import Synchronization

// The service's end of its guardian: starts it, tells it what to watch, and starts another one
// should it end.
//
// Invariants
// - At most one guardian of a state directory lives: it holds a lock there, and the next service
//   waits for it before it starts its own.
// - Without a guardian the service works; a kill then costs the histories of its devices.

/// The guardian of this service.
actor Guardian {
    /// Time for an answer.
    private static let answerSeconds = 10
    /// Guardians started after the first: one that ends again and again is of no use.
    private static let restartCountMax = 16

    private let lockPath: String
    private let frozenListPath: String
    private let blocking: BlockingPool
    private let logger: Logger
    private var link: GuardianLink?
    private var processID: Int32 = 0
    private var watched: [ObjectName: WatchedOrigin] = [:]
    private var isDismissed = false
    private var restartCount = 0

    init(
        stateDirectory: String, runtimeDirectory: String, blocking: BlockingPool, logger: Logger
    ) {
        lockPath = stateDirectory + "/guardian.lock"
        frozenListPath = runtimeDirectory + "/" + FrozenFilesystems.listName
        self.blocking = blocking
        self.logger = logger
    }

    /// Waits until the guardian of a service that was killed has recorded what it watched, then
    /// starts this service's. Thaws what is still frozen.
    func start() async {
        let (lockPath, frozenListPath) = (lockPath, frozenListPath)
        let isFree = await blocking.run { Self.waitForFormer(lockPath) } ?? false
        if !isFree {
            logger.error(
                "the guardian of the service before has not ended; what it was to record is lost")
        }
        let thawed = await blocking.run { FrozenFilesystems.thaw(listedIn: frozenListPath) } ?? []
        for mountPoint in thawed {
            logger.warning("thawed \(mountPoint), which a killed service had left frozen")
        }
        await spawn()
    }

    /// Has an origin watched; returns when it is, or when that failed.
    func watch(_ origin: WatchedOrigin) async {
        watched[origin.name] = origin
        guard let answer = await ask(.watch(origin)) else { return }
        if answer != GuardianMessage.accepted {
            logger.error(
                """
                the guardian cannot watch device \(origin.name) (\(answer)); if the service is \
                killed, the history of its changes ends
                """)
        }
    }

    /// The device was detached.
    func forget(_ name: ObjectName) async {
        guard watched.removeValue(forKey: name) != nil else { return }
        _ = await ask(.forget(name))
    }

    /// The service ends cleanly: so does the guardian.
    func dismiss() async {
        isDismissed = true
        _ = await ask(.dismiss)
        link = nil
    }

    // MARK: Process

    /// False when the former one still holds its lock after its longest wait. Then its lock file
    /// is replaced, so that others do not wait for it again. Blocks.
    private nonisolated static func waitForFormer(_ lockPath: String) -> Bool {
        let lock = open(lockPath, O_RDWR | O_CLOEXEC)
        guard lock >= 0 else { return true }
        defer { close(lock) }
        let deadline = cl_now_nanoseconds() + (GuardianProcess.waitSeconds + 5) * 1_000_000_000
        if FileLock.exclusive(lock, until: deadline) { return true }
        unlink(lockPath)
        return false
    }

    private func spawn() async {
        let (lockPath, frozenListPath) = (lockPath, frozenListPath)
        let started = await blocking.run { Self.spawn(lockPath, frozenListPath) }
        switch started {
        case .success((let socket, let processID)):
            let link = GuardianLink(owning: socket)
            self.link = link
            self.processID = processID
            Self.whenEnded(processID) { Task { await self.ended(processID) } }
            let greeting = await blocking.run { link.greeting() } ?? nil
            guard greeting == GuardianMessage.accepted else {
                self.link = nil
                restartCount = Self.restartCountMax
                logger.error("the guardian did not start: \(greeting ?? "it does not answer")")
                return
            }
            for origin in watched.values.sorted(by: { $0.name < $1.name }) {
                await watch(origin)
            }
        case .failure(let failure):
            logger.error("the guardian did not start: \(failure)")
        case nil: logger.error("the guardian did not start: too many operations wait")
        }
    }

    private nonisolated static func spawn(
        _ lockPath: String, _ frozenListPath: String
    ) -> Result<(Int32, Int32), SystemFailure> {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            return .failure(SystemFailure(subject: "socketpair", errnoValue: errno))
        }
        defer { close(ends[1]) }
        var limit = timeval(tv_sec: answerSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                ends[0], SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        // The same program in a process of its own, with none of this one's memory.
        let words = [
            "stillpoint", "guardian", "--lock", lockPath, "--frozen-list", frozenListPath,
        ]
        var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
        arguments.append(nil)
        defer { for argument in arguments { free(argument) } }
        var processID: Int32 = 0
        let failure = cl_spawn_companion("/proc/self/exe", &arguments, ends[1], &processID)
        guard failure == 0 else {
            close(ends[0])
            return .failure(SystemFailure(subject: "/proc/self/exe", errnoValue: failure))
        }
        return .success((ends[0], processID))
    }

    /// Calls `body` on a thread of its own when the process has ended, and reaps it.
    private nonisolated static func whenEnded(
        _ processID: Int32, _ body: @escaping @Sendable () -> Void
    ) {
        final class Wait {
            let processID: Int32
            let body: @Sendable () -> Void
            init(_ processID: Int32, _ body: @escaping @Sendable () -> Void) {
                self.processID = processID
                self.body = body
            }
        }
        var handle = pthread_t()
        let context = Unmanaged.passRetained(Wait(processID, body)).toOpaque()
        let result = pthread_create(
            &handle, nil,
            { context in
                guard let context else { preconditionFailure("a thread without its object") }
                cl_block_signals()
                cl_name_thread("guardian-wait")
                let wait = Unmanaged<Wait>.fromOpaque(context).takeRetainedValue()
                while waitpid(wait.processID, nil, 0) < 0 && errno == EINTR {}
                wait.body()
                return nil
            }, context)
        guard result == 0 else {
            // Without a thread nobody notices its end; the service works all the same.
            return Unmanaged<Wait>.fromOpaque(context).release()
        }
        pthread_detach(handle)
    }

    private func ended(_ processID: Int32) async {
        guard !isDismissed, processID == self.processID else { return }
        link = nil
        guard restartCount < Self.restartCountMax else {
            logger.error(
                "the guardian has ended too often; a kill of the service now ends histories")
            return
        }
        restartCount += 1
        logger.error("the guardian has ended; another one is started")
        await spawn()
    }

    // MARK: Messages

    /// Sends a message and returns the answer; nil when there is no guardian, or none that
    /// answers, which was logged.
    private func ask(_ message: GuardianMessage) async -> String? {
        guard let link else { return nil }
        let answer = await blocking.run { link.ask(message) }
        guard let answer, let answer else {
            logger.error("the guardian does not answer")
            return nil
        }
        return answer
    }
}

/// The socket to a guardian, for one question at a time.
private final class GuardianLink: Sendable {
    // The lock is held from a question to its answer, on threads of the blocking pool.
    private let socket: Mutex<Int32>

    init(owning socket: Int32) { self.socket = Mutex(socket) }

    deinit { socket.withLock { _ = close($0) } }

    /// Sends a message and returns the answer; nil when there is none in time. Blocks.
    func ask(_ message: GuardianMessage) -> String? {
        socket.withLock { socket in
            var bytes = message.bytes
            guard send(socket, &bytes, bytes.count, Int32(MSG_NOSIGNAL)) == bytes.count
            else { return nil }
            return Self.receive(socket)
        }
    }

    /// The first word of the guardian, that it is ready; nil when it does not come. Blocks.
    func greeting() -> String? { socket.withLock { Self.receive($0) } }

    private static func receive(_ socket: Int32) -> String? {
        var packet = [UInt8](repeating: 0, count: GuardianMessage.byteCountMax)
        while true {
            let count = recv(socket, &packet, packet.count, 0)
            if count < 0 && errno == EINTR { continue }
            return count > 0 ? String(decoding: packet[..<count], as: UTF8.self) : nil
        }
    }
}

/// The guardian's own process, from its command line on: returns its exit status.
package func runGuardian(lockPath: String, frozenListPath: String) -> Int32 {
    var guardian = GuardianProcess(frozenListPath: frozenListPath, bootID: BootID.current)
    return guardian.run(lockPath: lockPath)
}
