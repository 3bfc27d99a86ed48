internal import CLinux
internal import Glibc

/// Programs of QEMU that copies are made with.
enum HelperProcess {
    /// Most bytes of a program's output that are reported.
    private static let textByteCountMax = 2000

    /// Neither qemu-img nor qemu-nbd is there.
    static let missing = CopyError(
        .failed,
        "qcow2 files are written through qemu-nbd and qemu-img, which were not found; install them "
            + "(Debian: qemu-utils), or name a target without .qcow2")

    /// qemu-nbd is started by setpriv.
    private static let missingSetpriv = CopyError(
        .failed, "qemu-nbd is started by setpriv, which was not found; install util-linux")

    /// Starts a program found in PATH, in a process group of its own: Ctrl-C is for this program,
    /// which ends the other one when it is done with it. What it says goes to `words`; `passing`
    /// is its descriptor 3.
    static func start(
        _ arguments: [String], words: Int32, passing: Int32? = nil
    ) throws(CopyError) -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_adddup2(&actions, words, STDOUT_FILENO)
        posix_spawn_file_actions_adddup2(&actions, words, STDERR_FILENO)
        if let passing { posix_spawn_file_actions_adddup2(&actions, passing, 3) }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        // Threads of Swift's pool block signals, and this program ignores SIGXFSZ.
        var none = sigset_t()
        sigemptyset(&none)
        posix_spawnattr_setsigmask(&attributes, &none)
        posix_spawnattr_setflags(
            &attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP))
        var pointers = arguments.map { strdup($0) } + [nil]
        defer { for pointer in pointers { free(pointer) } }
        var process: pid_t = 0
        let failure = posix_spawnp(
            &process, arguments[0], &actions, &attributes, &pointers, environ)
        guard failure == 0 else {
            if failure == ENOENT { throw arguments[0] == "setpriv" ? missingSetpriv : missing }
            throw CopyError(.failed, "\(arguments[0]): \(CopyTarget.text(failure))")
        }
        return process
    }

    /// Waits for a child; its exit status, or 128 and the signal that ended it.
    static func wait(for process: pid_t) -> Int32 {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { return 126 }
        }
        let signal = status & 0x7F
        return signal == 0 ? status >> 8 & 0xFF : 128 + signal
    }

    /// Waits until a child has ended. `wait` still gives its exit status.
    static func awaitEnd(of process: pid_t) {
        var information = siginfo_t()
        while waitid(P_PID, id_t(process), &information, WEXITED | WNOWAIT) < 0, errno == EINTR {}
    }

    /// The output of a program, in one line.
    static func text(_ words: Int32) -> String {
        var bytes = [UInt8](repeating: 0, count: textByteCountMax)
        let count = pread(words, &bytes, bytes.count, 0)
        return String(decoding: bytes.prefix(max(0, count)), as: UTF8.self)
            .split(separator: "\n").joined(separator: "; ")
    }

    /// Runs a program that must succeed. `doing` says what for, for people.
    static func run(_ arguments: [String], doing: String) throws(CopyError) {
        let words = cl_memory_file("words")
        guard words >= 0 else { throw CopyError(.failed, "\(doing): \(CopyTarget.text(errno))") }
        defer { close(words) }
        let status = wait(for: try start(arguments, words: words))
        guard status == 0 else {
            let output = text(words)
            if output.contains("Failed to get") {
                throw CopyError(
                    .busy, "\(doing): it is in use by QEMU or one of its tools; stop that first")
            }
            throw CopyError(
                .failed, "\(doing): \(output.isEmpty ? "exit status \(status)" : output)")
        }
    }
}
