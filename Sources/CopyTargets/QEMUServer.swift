internal import CLinux
package import CopyPlanning
internal import Dispatch
internal import Glibc
internal import Host
internal import NBDAccess
internal import Synchronization

// A qemu-nbd that serves one file to this process and nobody else, and ends with it.
//
//   socket bound, listening -> connected to by ourselves -> passed to qemu-nbd as its only socket
//
// It ends when its last client has gone, and we are a client of it before it starts. It does not
// count a client that goes before its handshake, so the kernel ends it with the thread that started
// it as well. That thread lives until qemu-nbd has ended, so none is left behind when this process
// is killed. The socket's name is removed before that; later connections find it by a descriptor.

/// A qemu-nbd of our own; see the head of this file. Everything blocks.
package final class QEMUServer: Sendable {
    /// Where it listens, for this process.
    let address: NBDServerAddress
    private let path: String
    private let socketPlace: Int32
    private let words: Int32
    private let process: Mutex<pid_t?>
    /// The first client, used for what concerns all of them.
    private let first: Mutex<First>

    private struct First: @unchecked Sendable {
        // SAFETY: used under the lock alone.
        var export: NBDExport?
    }

    /// Times a file is tried that a qemu-nbd of a copy that was killed still closes.
    private static let attemptsMax = 50
    private static let attemptInterval: UInt32 = 100_000
    private static let connectionsMax = 32

    private init(
        _ path: String, socketPlace: Int32, words: Int32, process: pid_t, _ export: First
    ) {
        self.path = path
        self.socketPlace = socketPlace
        self.words = words
        self.process = Mutex(process)
        first = Mutex(export)
        address = .unix(path: "/proc/self/fd/\(socketPlace)")
    }

    /// Serves a file of the given format.
    package static func serve(
        _ path: String, format: String = "qcow2", isReadOnly: Bool
    ) throws(CopyError) -> QEMUServer {
        for _ in 1..<attemptsMax {
            do throws(CopyError) {
                return try serveOnce(path, format, isReadOnly)
            } catch {
                guard error.code == .busy else { throw error }
                usleep(attemptInterval)
            }
        }
        return try serveOnce(path, format, isReadOnly)
    }

    private static func serveOnce(
        _ path: String, _ format: String, _ isReadOnly: Bool
    ) throws(CopyError) -> QEMUServer {
        let (socket, place) = try listen()
        var open = [socket, place]
        defer { for descriptor in open { close(descriptor) } }
        let words = cl_memory_file("qemu-nbd")
        guard words >= 0 else { throw failure(path, CopyTarget.text(errno)) }
        open.append(words)
        let process: pid_t
        let stream: NBDStream
        do throws(NBDAccessError) {
            stream = try NBDStream(connecting: .unix(path: "/proc/self/fd/\(place)"))
        } catch { throw failure(path, "\(error)") }
        process = try start(path, format, isReadOnly, socket, words)
        // From here on the listening socket is qemu-nbd's alone: its end ends our connection.
        close(socket)
        open = [place, words]
        do throws(NBDAccessError) {
            let export = try NBDExport(stream, export: "", isForWriting: !isReadOnly)
            open = []
            return QEMUServer(
                path, socketPlace: place, words: words, process: process, First(export: export))
        } catch {
            // It forgets a SIGTERM that comes before it serves, and has nothing to write.
            kill(process, SIGKILL)
            throw meaning(ProgramStart.wait(for: process), words, path, "\(error)")
        }
    }

    deinit {
        _ = end()
        close(socketPlace)
        close(words)
    }

    /// A listening socket that nobody else can find, and a descriptor that stands for its name.
    private static func listen() throws(CopyError) -> (socket: Int32, place: Int32) {
        var template = Array("/tmp/stillpoint-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw failure("/tmp", CopyTarget.text(errno)) }
        let directory = String(decoding: template.dropLast().map(UInt8.init), as: UTF8.self)
        let path = directory + "/nbd"
        defer {
            unlink(path)
            rmdir(directory)
        }
        let made = socket(
            AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        guard made >= 0 else { throw failure(path, CopyTarget.text(errno)) }
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        let bound = withUnsafeBytes(of: &name) { bytes in
            // SAFETY: a `sockaddr_un` is a `sockaddr` of its family, `bytes.count` bytes long.
            bind(
                made, bytes.baseAddress?.assumingMemoryBound(to: sockaddr.self),
                socklen_t(bytes.count))
        }
        let place =
            bound == 0 && Glibc.listen(made, Int32(connectionsMax)) == 0
            ? open(path, cl_o_path | O_CLOEXEC) : -1
        guard place >= 0 else {
            let reason = errno
            close(made)
            throw failure(path, CopyTarget.text(reason))
        }
        return (made, place)
    }

    private static func start(
        _ path: String, _ format: String, _ isReadOnly: Bool, _ socket: Int32, _ words: Int32
    ) throws(CopyError) -> pid_t {
        // qemu-nbd forgets a SIGTERM that comes before it serves. What a record names was flushed,
        // so SIGKILL loses nothing. No signal comes if this process ends before it is asked for, so
        // the shell looks who its parent is afterwards. Only the program itself knows its number,
        // which the protocol of passing sockets asks for.
        var arguments = [
            "setpriv", "--pdeathsig", "KILL", "sh", "-c",
            "[ \"$PPID\" = \"$0\" ] || exit; LISTEN_PID=$$ LISTEN_FDS=1 exec qemu-nbd \"$@\"",
            "\(getpid())",
            "--format=\(format)", "--shared=\(connectionsMax)", "--discard=unmap",
        ]
        if isReadOnly { arguments.append("--read-only") }
        arguments += ["--", path]
        let start = Start()
        do throws(HostError) {
            try ServiceThread.start("qemu-nbd") { [arguments] in
                let outcome: Result<pid_t, CopyError>
                do throws(CopyError) {
                    outcome = .success(
                        try HelperProcess.start(arguments, words: words, passing: socket))
                } catch { outcome = .failure(error) }
                start.outcome.withLock { $0 = outcome }
                start.isKnown.signal()
                if case .success(let process) = outcome { HelperProcess.awaitEnd(of: process) }
            }
        } catch { throw failure(path, "\(error)") }
        start.isKnown.wait()
        guard let outcome = start.outcome.withLock({ $0 }) else {
            preconditionFailure("a start without its outcome")
        }
        return try outcome.get()
    }

    /// How its start went, reported by the thread that started it.
    private final class Start: Sendable {
        let outcome = Mutex<Result<pid_t, CopyError>?>(nil)
        let isKnown = DispatchSemaphore(value: 0)
    }

    /// Ends it, so that all it took is in the file. Returns its exit status.
    @discardableResult
    func end() -> Int32 {
        first.withLock { $0.export = nil }
        return process.withLock { process in
            guard let started = process else { return 0 }
            process = nil
            kill(started, SIGTERM)
            return ProgramStart.wait(for: started)
        }
    }

    /// Bytes of the file.
    package var size: UInt64 { first.withLock { $0.export?.size ?? 0 } }

    /// What every client has written is on stable storage when it returns.
    func flush() throws(CopyError) {
        let outcome = first.withLock { first -> Result<Void, NBDAccessError> in
            guard let export = first.export else { return .failure(.ended) }
            do throws(NBDAccessError) { return .success(try export.flush()) } catch {
                return .failure(error)
            }
        }
        if case .failure(let error) = outcome {
            throw CopyError(
                .failed,
                "target \(path) cannot be flushed (\(error)); run the same command again")
        }
    }

    // MARK: Failures

    private static func failure(_ path: String, _ reason: String) -> CopyError {
        CopyError(.failed, "\(path) cannot be opened with qemu-nbd: \(reason)")
    }

    private static func meaning(
        _ status: Int32, _ words: Int32, _ path: String, _ reason: String
    ) -> CopyError {
        if status == 127 { return HelperProcess.missing }
        let output = HelperProcess.text(words)
        if output.contains("Failed to get") {
            return CopyError(
                .busy, "\(path) is in use by QEMU or one of its tools; stop that first")
        }
        return failure(path, output.isEmpty ? reason : output)
    }
}
