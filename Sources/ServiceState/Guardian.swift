package import BlockModel
internal import CLinux
internal import ControlDocuments
internal import Freezing
package import Generations
internal import Glibc
internal import Guardianship
internal import Host
package import Logging
internal import Origins
package import RingIO
internal import Synchronization

// The service's end of its guardian: starts it, tells it what to watch, and starts another one
// should it end.
//
// Invariants
// - At most one guardian of a state directory watches: it holds a lock there until it has recorded
//   what it watched, and the next service waits for it before it starts its own.
// - What a guardian holds is held by the next one before the former lets go, and only then asked to
//   the service.
// - Without a guardian the service works; a kill then costs the generations of its devices, and its
//   block devices end with it.
// - A service that ends cleanly outlives its guardian, unless block devices wait for the next one.

/// The guardian of this service.
package actor Guardian {
    /// Time for an answer.
    private static let answerSeconds = 10
    /// Guardians started after the first: one that ends again and again is of no use.
    private static let restartCountMax = 16

    private let options: GuardianOptions
    /// Shared while a process is started: none is while filesystems are frozen.
    private let freezeLock: AsyncReadWriteLock
    private let blocking: BlockingPool
    private let logger: Logger
    private var link: GuardianLink?
    private var life: GuardianLife?
    private var watched: [ObjectName: WatchedOrigin] = [:]
    private var held: [UInt64: HeldDevice] = [:]
    private var thawing: Task<Void, Never>?
    private var isDismissed = false
    private var restartCount = 0

    package init(
        stateDirectory: String, runtimeDirectory: String, restartLimitSeconds: UInt64,
        freezeLock: AsyncReadWriteLock, blocking: BlockingPool, logger: Logger
    ) {
        options = GuardianOptions(
            lockPath: stateDirectory + "/guardian.lock",
            frozenListPath: runtimeDirectory + "/" + FrozenFilesystems.listName,
            stateDirectory: stateDirectory, runtimeDirectory: runtimeDirectory,
            restartLimitSeconds: restartLimitSeconds)
        self.freezeLock = freezeLock
        self.blocking = blocking
        self.logger = logger
    }

    /// Seconds for which block devices wait.
    package nonisolated var restartLimitSeconds: UInt64 { options.restartLimitSeconds }

    /// Waits until the guardian of a service that was killed has recorded what it watched, takes
    /// over what it holds, and starts this service's. Begins to thaw what is still frozen. Throws
    /// where the former guardian holds block devices and cannot be understood.
    package func start() async throws -> [HeldDevice] {
        let lockPath = options.lockPath
        let isFree = await blocking.run { Self.waitForFormer(lockPath) } ?? false
        if !isFree {
            logger.error(
                "the guardian of the previous service has not ended; what it had to record is lost")
        }
        let directory = options.stateDirectory
        let outcome = await blocking.run { Takeover.begin(in: directory) }
        guard let outcome else { throw ControlError.tooManyOperations }
        let takeover = try outcome.get()
        for device in takeover?.devices ?? [] { held[device.key] = device }
        // A filesystem on a block device that waits thaws once that is served again.
        thawing = Task { await self.thaw() }
        let isWhole = await spawn()
        if let takeover {
            if isWhole {
                _ = await blocking.run { takeover.confirm() }
            } else {
                logger.error(
                    """
                    no guardian holds the block devices that were taken over: they end with this \
                    service, or with the guardian of the one before
                    """)
            }
        }
        return held.values.sorted { $0.key < $1.key }
    }

    /// Waits until what the service before left frozen is thawed.
    package func finishThawing() async { await thawing?.value }

    private func thaw() async {
        let path = options.frozenListPath
        let thawed = await ErrandProcess.thaw(listedIn: path)
        for mountPoint in thawed {
            logger.warning("thawed \(mountPoint), which a killed service had left frozen")
        }
    }

    // MARK: Block devices

    /// Has the guardian hold an open /dev/fuse, which stays the caller's. False when no guardian
    /// holds it.
    package func hold(_ descriptor: Int32, as key: UInt64, note: [UInt8]) async -> Bool {
        // Another one, for the caller may close its own while another guardian is given it.
        let own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
        guard own >= 0 else { return false }
        let device = HeldDevice(key: key, descriptor: own, isDrained: false, note: note)
        held[key] = device
        return await handOver(device)
    }

    /// Notes something else of a block device that is held.
    package func note(_ note: [UInt8], of key: UInt64) async -> Bool {
        guard var device = held[key] else { return false }
        device.note = note
        held[key] = device
        return await handOver(device)
    }

    private func handOver(_ device: HeldDevice) async -> Bool {
        let message = GuardianMessage.hold(
            device.key, isDrained: device.isDrained, note: device.note)
        guard let answer = await ask(message, with: device.descriptor) else { return false }
        guard answer != GuardianMessage.accepted else { return true }
        logger.error("the guardian cannot hold a block device: \(answer)")
        return false
    }

    /// Whether nothing that was read from a block device is in hand. False when no guardian knows.
    @discardableResult
    package func setDrained(_ key: UInt64, _ isDrained: Bool) async -> Bool {
        guard held[key] != nil else { return false }
        held[key]?.isDrained = isDrained
        return await ask(.setDrained(key, isDrained)) == GuardianMessage.accepted
    }

    /// The block device is gone, or is to fail.
    package func release(_ key: UInt64) async {
        guard let device = held.removeValue(forKey: key) else { return }
        _ = await ask(.release(key))
        // The last reference fails what waits, which takes a moment.
        let descriptor = device.descriptor
        if await blocking.run({ close(descriptor) }) == nil { close(descriptor) }
    }

    /// Has an origin watched; returns when it is, or when that failed.
    package func watch(_ origin: WatchedOrigin) async {
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
    package func forget(_ name: ObjectName) async {
        guard watched.removeValue(forKey: name) != nil else { return }
        _ = await ask(.forget(name))
    }

    /// The service ends cleanly: so does the guardian, before this returns, unless block devices
    /// wait for the next service.
    package func dismiss() async {
        isDismissed = true
        let answer = await ask(.dismiss)
        if let life, answer != GuardianMessage.holding {
            // One that does not answer would take the end of its socket for a death.
            let isGoing = answer == GuardianMessage.accepted
            let hasEnded = await blocking.run { life.end(isGoing: isGoing) }
            if hasEnded != true { logger.error("the guardian does not end") }
        }
        if answer == GuardianMessage.holding {
            logger.info(
                """
                \(held.count) block device(s) wait for the next service, at most \
                \(options.restartLimitSeconds) s
                """)
        }
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
        guard LockWait(LOCK_EX, on: lock).wait(until: deadline) else {
            unlink(lockPath)
            return false
        }
        return true
    }

    /// True when the guardian holds all that it is to hold.
    private func spawn() async -> Bool {
        let options = options
        let started = await blocking.run { Self.spawn(options) }
        switch started {
        case .success((let socket, let processID)):
            let link = GuardianLink(owning: socket)
            self.link = link
            let life = GuardianLife(processID)
            // Without a thread nobody notices its end; the service works all the same.
            self.life = life.follow { Task { await self.ended(life) } } ? life : nil
            let greeting = await blocking.run { link.greeting() } ?? nil
            guard greeting == GuardianMessage.accepted else {
                self.link = nil
                restartCount = Self.restartCountMax
                logger.error("the guardian did not start: \(greeting ?? "it does not answer")")
                return false
            }
            return await handOverAll()
        case .failure(let failure):
            logger.error("the guardian did not start: \(failure)")
        case nil: logger.error("the guardian did not start: too many operations wait")
        }
        return false
    }

    private func handOverAll() async -> Bool {
        for origin in watched.values.sorted(by: { $0.name < $1.name }) {
            await watch(origin)
        }
        var isWhole = true
        for device in held.values where await !handOver(device) { isWhole = false }
        guard isWhole else { return false }
        guard let answer = await ask(.adopted) else { return false }
        guard answer != GuardianMessage.accepted else { return true }
        logger.error(
            "the next service cannot find the guardian (\(answer)): block devices end with this one"
        )
        return false
    }

    private nonisolated static func spawn(
        _ options: GuardianOptions
    ) -> Result<(Int32, Int32), HostError> {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            return .failure(HostError("socketpair", errno))
        }
        defer { close(ends[1]) }
        var limit = timeval(tv_sec: answerSeconds, tv_usec: 0)
        for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
            setsockopt(
                ends[0], SOL_SOCKET, option, &limit, socklen_t(MemoryLayout<timeval>.size))
        }
        // The same program in a process of its own, without this one's memory.
        let words = [
            "guardian", "--lock", options.lockPath,
            "--frozen-list", options.frozenListPath, "--state-dir", options.stateDirectory,
            "--runtime-dir", options.runtimeDirectory,
            "--restart-limit", "\(options.restartLimitSeconds)",
        ]
        do throws(HostError) {
            return .success(
                (ends[0], try ProgramStart.ownProgram(words, socket: ends[1]).run()))
        } catch {
            close(ends[0])
            return .failure(error)
        }
    }

    private func ended(_ life: GuardianLife) async {
        guard !isDismissed, life === self.life else { return }
        link = nil
        guard restartCount < Self.restartCountMax else {
            logger.error(
                """
                the guardian has ended too often and is not started again: if the service is \
                killed, the histories of its devices end
                """)
            return
        }
        restartCount += 1
        logger.error("the guardian has ended and is started again")
        await freezeLock.lockShared()
        defer { freezeLock.unlock() }
        guard !isDismissed else { return }
        _ = await spawn()
    }

    // MARK: Messages

    /// Sends a message and returns the answer; nil when there is no guardian, or none that
    /// answers, which was logged.
    private func ask(_ message: GuardianMessage, with descriptor: Int32 = -1) async -> String? {
        guard let link else { return nil }
        let answer = await blocking.run { link.ask(message, with: descriptor) }
        guard let answer, let answer else {
            logger.error("the guardian does not answer")
            return nil
        }
        return answer
    }
}

/// The process of a guardian, reaped as soon as it has ended.
private final class GuardianLife: Sendable {
    /// Time to end, and to be killed.
    private static let endNanoseconds: UInt64 = 10_000_000_000

    private let processID: Int32
    // Held while the number is used: until it is reaped it is that of no other process.
    private let isReaped = Mutex(false)
    private let ended = Semaphore()

    init(_ processID: Int32) { self.processID = processID }

    /// Waits for its end on a thread of its own and calls `body` then; false when there can be no
    /// such thread.
    func follow(_ body: @escaping @Sendable () -> Void) -> Bool {
        do throws(HostError) {
            try ServiceThread.start("guardian-wait") { [self] in
                reap()
                body()
            }
            return true
        } catch { return false }
    }

    private func reap() {
        var facts = siginfo_t()
        while waitid(P_PID, id_t(processID), &facts, WEXITED | WNOWAIT) < 0 && errno == EINTR {}
        isReaped.withLock { isReaped in
            waitpid(processID, nil, 0)
            isReaped = true
        }
        ended.signal()
    }

    /// Waits for its end, and brings it about where it does not come (`isGoing`: by itself). False
    /// when even that took too long. Blocks.
    func end(isGoing: Bool) -> Bool {
        if isGoing, ended.wait(until: cl_now_nanoseconds() + Self.endNanoseconds) { return true }
        isReaped.withLock { isReaped in
            if !isReaped { _ = kill(processID, SIGKILL) }
        }
        return ended.wait(until: cl_now_nanoseconds() + Self.endNanoseconds)
    }
}

/// The socket to a guardian, for one question at a time.
private final class GuardianLink: Sendable {
    // The lock is held from a question to its answer, on threads of the blocking pool.
    private let socket: Mutex<Int32>

    init(owning socket: Int32) { self.socket = Mutex(socket) }

    deinit { socket.withLock { _ = close($0) } }

    /// Sends a message and returns the answer; nil when there is none in time. Blocks.
    func ask(_ message: GuardianMessage, with descriptor: Int32) -> String? {
        socket.withLock { socket in
            let bytes = message.bytes
            guard cl_send_packet(socket, bytes, bytes.count, descriptor) == bytes.count
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
package func runGuardian(
    lockPath: String, frozenListPath: String, stateDirectory: String, runtimeDirectory: String,
    restartLimitSeconds: UInt64
) -> Int32 {
    var guardian = GuardianProcess(
        GuardianOptions(
            lockPath: lockPath, frozenListPath: frozenListPath, stateDirectory: stateDirectory,
            runtimeDirectory: runtimeDirectory, restartLimitSeconds: restartLimitSeconds),
        bootID: BootID.current)
    return guardian.run()
}
