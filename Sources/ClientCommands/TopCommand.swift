package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments
internal import Glibc
internal import Host

/// `top`: what the devices do now.
package struct TopCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "top",
        abstract: "Show what the devices do now, again and again.",
        usage: "stillpoint top [--once] [--interval SECONDS] [OPTIONS]",
        discussion: """
            Rates and latency of reads and writes, writes that waited, data copied for snapshots, and \
            how full their storage is; the busiest devices first. In a terminal the picture is \
            refreshed in place until q or Ctrl-C, which leave the screen as it was; so does Ctrl-Z. With \
            --once, with --json or without a terminal it looks for one interval, prints and ends.

            Examples:
              stillpoint top
              stillpoint top --once --interval 10
              stillpoint top --json
            """)

    @Option(help: "Seconds between two looks, 1 to 3600.")
    var interval: UInt64 = 2

    @Flag(help: "Look for one interval, print and end.")
    var once = false

    @OptionGroup var options: ClientOptions

    package init() {}

    package func validate() throws {
        guard (1...3600).contains(interval) else {
            throw ValidationError("--interval \(interval): use 1 to 3600 seconds")
        }
    }

    package mutating func run() async throws {
        let client = try options.client()
        let isScreen = FileHandles.output.columns != nil && !once && !options.json
        guard isScreen else {
            let figures = try await Self.look(client, for: .seconds(interval))
            return try options.show(figures) { figures.text(columns: nil, rows: nil) }
        }
        try await Self.show(client, every: .seconds(interval))
    }

    private static func activity(_ client: ControlClient) async throws -> ActivityDocument {
        try await client.call(.GET, "/v1/activity")
    }

    /// The rates of one interval.
    private static func look(
        _ client: ControlClient, for interval: Duration
    ) async throws -> TopFigures {
        let before = try await activity(client)
        try await Task.sleep(for: interval)
        guard let figures = TopFigures(from: before, to: try await activity(client)) else {
            throw ControlError(.failed, "the service was restarted meanwhile; try again")
        }
        return figures
    }

    /// Refreshes the screen until the user has seen enough.
    private static func show(_ client: ControlClient, every interval: Duration) async throws {
        // Asked before the screen is taken: a missing service is reported as usual.
        var before = try await activity(client)
        let (actions, continuation) = AsyncStream.makeStream(of: TopScreen.Action.self)
        let screen = try TopScreen { continuation.yield($0) }
        defer { screen.giveBack() }
        let interruption = Interruption.whenAsked { continuation.yield(.end) }
        defer { interruption.withdraw() }
        let clock = Task {
            // Soon at first: there are no rates before the second look.
            try await Task.sleep(for: .milliseconds(500))
            while true {
                continuation.yield(.look)
                try await Task.sleep(for: interval)
            }
        }
        defer { clock.cancel() }
        screen.draw("looking ...\n")
        for await asked in actions {
            switch asked {
            case .end: return
            case .suspend:
                screen.suspend()
                continue
            case .look: break
            }
            let after: ActivityDocument
            do {
                after = try await activity(client)
            } catch let error as Unreachable {
                // It may be restarted: it is waited for.
                screen.draw(error.message + "\n")
                continue
            }
            if let figures = TopFigures(from: before, to: after) {
                screen.draw(
                    figures.text(
                        columns: FileHandles.output.columns, rows: FileHandles.output.rows))
            }
            before = after
        }
    }
}

/// The terminal while `top` has it: a screen of its own, and keys as they are pressed.
private final class TopScreen: Sendable {
    /// What is to be done next.
    enum Action: Sendable {
        case look, suspend, end
    }

    private let former: termios?

    /// Takes the screen. `perform` is called when a key asks for something.
    init(_ perform: @escaping @Sendable (Action) -> Void) throws {
        var settings = termios()
        if isatty(STDIN_FILENO) == 1, tcgetattr(STDIN_FILENO, &settings) == 0 {
            former = settings
            do throws(HostError) {
                try ServiceThread.start("keys") {
                    var key: UInt8 = 0
                    while read(STDIN_FILENO, &key, 1) == 1 {
                        switch key {
                        case UInt8(ascii: "q"), UInt8(ascii: "Q"): return perform(.end)
                        case UInt8(ascii: " "): perform(.look)
                        case Self.suspendKey: perform(.suspend)
                        default: break
                        }
                    }
                }
            } catch {
                // Without keys, Ctrl-C ends it.
            }
        } else {
            former = nil
        }
        take()
    }

    /// Ctrl-Z. As a signal it would stop the process before it could give the screen back.
    private static let suspendKey: UInt8 = 0x1A

    /// The other screen, without a cursor.
    private func take() {
        if var settings = former {
            // Keys at once and unseen; Ctrl-C stays a signal.
            settings.c_lflag &= ~tcflag_t(ICANON | ECHO)
            withUnsafeMutableBytes(of: &settings.c_cc) { $0[Int(VSUSP)] = 0 }
            tcsetattr(STDIN_FILENO, TCSANOW, &settings)
        }
        FileHandles.output.write("\u{1B}[?1049h\u{1B}[?25l")
    }

    /// Leaves the terminal to the shell until that continues this process.
    func suspend() {
        giveBack()
        // Threads that run tasks block signals. With the signal unblocked, `raise` returns when the
        // process is continued, or at once when no shell could continue it.
        var stop = sigset_t()
        var former = sigset_t()
        sigemptyset(&stop)
        sigaddset(&stop, SIGTSTP)
        pthread_sigmask(SIG_UNBLOCK, &stop, &former)
        raise(SIGTSTP)
        pthread_sigmask(SIG_SETMASK, &former, nil)
        take()
    }

    /// Draws over what was there: what stays does not flicker.
    func draw(_ text: String) {
        let rows = FileHandles.output.rows ?? 24
        let lines = text.split(separator: "\n", omittingEmptySubsequences: false).prefix(rows)
        FileHandles.output.write(
            "\u{1B}[H" + lines.map { $0 + "\u{1B}[K" }.joined(separator: "\r\n") + "\u{1B}[J")
    }

    /// The terminal is as it was.
    func giveBack() {
        FileHandles.output.write("\u{1B}[?25h\u{1B}[?1049l")
        if var former { tcsetattr(STDIN_FILENO, TCSANOW, &former) }
    }
}
