package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments
internal import Glibc
internal import Host

/// `run`: a command that sees devices as they are at one moment.
package struct RunCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "run",
        abstract: "Run a command on consistent images of devices, and remove them afterwards.",
        usage: "stillpoint run --device NAME... [OPTIONS] -- COMMAND [ARGUMENTS]",
        discussion: """
            Takes a snapshot, attaches its images as block devices and, with --mount, mounts them \
            read-only (the log of a filesystem is replayed in the overlay of the image, never on the \
            device). The environment of the command has STILLPOINT_SNAPSHOT, and in \
            STILLPOINT_IMAGES and STILLPOINT_MOUNTS a line DEVICE=PATH for each device. Everything is \
            removed afterwards, even if the command or this program is killed. The exit status is \
            that of the command, or 128 plus the number of the signal that ended it.

            Examples:
              stillpoint run --device vm1 --mount -- sh -c 'restic backup "${STILLPOINT_MOUNTS#*=}"'
              stillpoint run --device a --device b -- sh -c 'echo "$STILLPOINT_IMAGES"'
            """)

    @Option(help: "Device to take a snapshot of; may be repeated. All are cut at one moment.")
    var device: [String]

    @Flag(help: "Mount the images.")
    var mount = false

    @Option(
        help: ArgumentHelp(
            "Name under which the cut is remembered as a checkpoint.", valueName: "name"))
    var checkpoint: String?

    @OptionGroup var options: ClientOptions

    @Argument(parsing: .postTerminator, help: "The command, after --.")
    var command: [String]

    package init() {}

    package func validate() throws {
        if command.isEmpty { throw ValidationError("give a command, after --") }
    }

    package mutating func run() async throws {
        let client = try options.client()
        var document = SnapshotCreateDocument(devices: device)
        document.name = checkpoint
        // Wrong usage is reported without a service.
        _ = try SnapshotRequest(document)
        let held = try await HeldImages.hold(
            HolderRequest(
                control: client.path, devices: device, name: checkpoint, attaches: true,
                mounts: mount))
        let child: pid_t
        do {
            child = try start(held)
        } catch {
            _ = held.release()
            throw error
        }
        // Ctrl-C reaches the command through its group.
        let interruption = Interruption.whenAsked { kill(-child, Interruption.lastSignal) }
        let status = await Self.ending(of: child)
        interruption.withdraw()
        let problem = held.release()
        if let problem {
            FileHandles.error.write("stillpoint: not everything was taken down: \(problem)\n")
        }
        Glibc.exit(status == 0 && problem != nil ? ExitStatus.failed.rawValue : status)
    }

    private static func lines(_ places: [HolderReply.Place]) -> String {
        places.map { "\($0.device)=\($0.path)" }.joined(separator: "\n")
    }

    /// Starts the command in a process group of its own, in the foreground where there is a
    /// terminal.
    private func start(_ held: HeldImages) throws -> pid_t {
        let own = [
            "STILLPOINT_SNAPSHOT=\(held.snapshot.label)",
            Holdings.mark(held.snapshot.id),
            "STILLPOINT_IMAGES=\(Self.lines(held.images))",
            "STILLPOINT_MOUNTS=\(Self.lines(held.mounts))",
        ]
        var start = ProgramStart(command[0], command)
        start.environment = .inheritedWith(own)
        (start.input, start.output, start.diagnostics) = (.inherited, .inherited, .inherited)
        start.group = .own
        let process: pid_t
        do throws(HostError) { process = try start.run() } catch {
            throw ControlError(
                error.errnoValue == ENOENT ? .notFound : .failed,
                "\(command[0]) cannot be run: \(SystemFile.errorText(error.errnoValue))")
        }
        if isatty(STDIN_FILENO) == 1 {
            // Otherwise giving the terminal away would stop this process.
            signal(SIGTTOU, SIG_IGN)
            tcsetpgrp(STDIN_FILENO, process)
        }
        return process
    }

    private static func ending(of child: pid_t) async -> Int32 {
        let status = await withCheckedContinuation { continuation in
            let waiter = Waiter(child, continuation)
            waiter.start()
        }
        if isatty(STDIN_FILENO) == 1 { tcsetpgrp(STDIN_FILENO, getpgrp()) }
        return status
    }

    /// Waits for the command on a thread of its own.
    private final class Waiter: Sendable {
        private let child: pid_t
        private let continuation: CheckedContinuation<Int32, Never>

        init(_ child: pid_t, _ continuation: CheckedContinuation<Int32, Never>) {
            self.child = child
            self.continuation = continuation
        }

        func start() {
            do throws(HostError) {
                try ServiceThread.start("command", blocksSignals: false) { [self] in
                    continuation.resume(returning: ProgramStart.wait(for: child))
                }
            } catch {
                // Without a thread the wait happens here: nothing else is going on.
                continuation.resume(returning: ProgramStart.wait(for: child))
            }
        }
    }
}
