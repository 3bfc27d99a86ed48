internal import CLinux
internal import Glibc

/// A program to be started as a child process. Its signals are not blocked, whatever the calling
/// thread blocks.
package struct ProgramStart {
    /// Where one of the standard streams leads.
    package enum Stream: Sendable {
        case inherited
        /// /dev/null.
        case null
        case descriptor(Int32)

        fileprivate var number: Int32 {
            switch self {
            case .inherited: cl_stream_inherited
            case .null: cl_stream_null
            case .descriptor(let number): number
            }
        }
    }

    /// Which process group the child is in.
    package enum Group: Sendable {
        case inherited
        /// One of its own: it gets no signals of the terminal.
        case own
        /// A session of its own.
        case ownSession
    }

    /// `NAME=VALUE` each.
    package enum Environment: Sendable {
        case inherited
        /// That of this process, except for these.
        case inheritedWith([String])
        /// These and no others.
        case only([String])
    }

    /// A path; a name without a slash is searched for in PATH.
    package var program: String
    /// The first one is its name.
    package var arguments: [String]
    package var environment = Environment.inherited
    package var input = Stream.null
    package var output = Stream.null
    package var diagnostics = Stream.null
    /// Becomes descriptor 3 of the child.
    package var passed: Int32?
    package var group = Group.inherited
    /// Signals that this process ignores are not ignored by the child.
    package var resetsSignals = false
    /// The child inherits no descriptor above 2.
    package var closesOthers = false
    /// The child's working directory is /.
    package var runsInRoot = false

    package init(_ program: String, _ arguments: [String]) {
        self.program = program
        self.arguments = arguments
    }

    /// A helper process of this same program, in a session of its own, with `socket` as its
    /// descriptor 3.
    package static func ownProgram(_ words: [String], socket: Int32) -> ProgramStart {
        var start = ProgramStart("/proc/self/exe", ["stillpoint"] + words)
        start.passed = socket
        start.group = .ownSession
        start.resetsSignals = true
        return start
    }

    /// Starts it; returns its process id.
    package func run() throws(HostError) -> Int32 {
        var pointers = arguments.map { strdup($0) } + [nil]
        var variables = variables()
        defer { for pointer in pointers + variables { free(pointer) } }
        var options = cl_spawn_options()
        options.input = input.number
        options.output = output.number
        options.diagnostics = diagnostics.number
        options.passed = passed ?? cl_stream_inherited
        options.own_group = group == .own
        options.own_session = group == .ownSession
        options.default_signals = resetsSignals
        options.close_others = closesOthers
        options.in_root = runsInRoot
        var process: pid_t = 0
        let failure =
            variables.isEmpty
            ? cl_spawn(program, &pointers, nil, &options, &process)
            : cl_spawn(program, &pointers, &variables, &options, &process)
        guard failure == 0 else { throw HostError(program, failure) }
        return process
    }

    /// Copies of the variables with a nil behind them; none: those of this process as they are.
    private func variables() -> [UnsafeMutablePointer<CChar>?] {
        switch environment {
        case .inherited: return []
        case .only(let own): return own.map { strdup($0) } + [nil]
        case .inheritedWith(let own):
            let names = own.map { String($0.prefix { $0 != "=" }) + "=" }
            var variables: [UnsafeMutablePointer<CChar>?] = []
            var place = environ
            while let entry = place.pointee {
                // Bytes are handed on as they are, text or not.
                if !names.contains(where: { strncmp(entry, $0, $0.utf8.count) == 0 }) {
                    variables.append(strdup(entry))
                }
                place += 1
            }
            return variables + own.map { strdup($0) } + [nil]
        }
    }

    /// Waits for a child; its exit status, or 128 and the signal that ended it. Blocks.
    package static func wait(for process: Int32) -> Int32 {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0 {
            guard errno == EINTR else { return 126 }
        }
        let signal = status & 0x7F
        return signal == 0 ? status >> 8 & 0xFF : 128 + signal
    }
}
