internal import CLinux
internal import CopyPlanning
internal import Glibc
internal import Host

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
        var start = ProgramStart(arguments[0], arguments)
        start.output = .descriptor(words)
        start.diagnostics = .descriptor(words)
        start.passed = passing
        // This program ignores SIGXFSZ, and so does the other one.
        start.group = .own
        do throws(HostError) { return try start.run() } catch {
            if error.errnoValue == ENOENT {
                throw arguments[0] == "setpriv" ? missingSetpriv : missing
            }
            throw CopyError(.failed, "\(error)")
        }
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
        let status = ProgramStart.wait(for: try start(arguments, words: words))
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
