internal import Host
internal import ControlDocuments
internal import Glibc

/// Standard output and standard error, written unbuffered and whole.
package struct FileHandles {
    /// Standard output.
    package static let output = FileHandles(number: STDOUT_FILENO)
    /// Standard error.
    package static let error = FileHandles(number: STDERR_FILENO)

    private let number: Int32

    /// Writes all of `text`. A reader of standard output that has gone away ends the program as it
    /// does any other, by SIGPIPE; another failure ends it with a message and exit status 1, since
    /// nobody may take half an output for the whole. A failing standard error is ignored: there is
    /// nobody left to tell.
    package func write(_ text: String) { write(Array(text.utf8)) }

    /// The same with bytes.
    package func write(_ all: [UInt8]) {
        let reason = attempt(all)
        guard reason != 0, number == STDOUT_FILENO else { return }
        if reason == EPIPE { Self.endAsReaderHas() }
        Self.error.write(
            "stillpoint: standard output: \(String(cString: strerror(reason))); what was printed is "
                + "incomplete\n")
        Glibc.exit(ExitStatus.failed.rawValue)
    }

    /// Writes all of `text` if somebody reads it; a program that serves others continues in any
    /// case.
    package func announce(_ text: String) { _ = attempt(Array(text.utf8)) }

    /// Returns 0, or the errno value of the write that failed.
    private func attempt(_ all: [UInt8]) -> Int32 {
        var bytes = all[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(number, $0.baseAddress, $0.count) }
            let reason = errno
            if count < 0, reason == EINTR { continue }
            if count < 0, reason == EAGAIN {
                // Somebody else made the other end's file non-blocking: it is full, not broken.
                var readiness = pollfd(fd: number, events: Int16(POLLOUT), revents: 0)
                poll(&readiness, 1, -1)
                continue
            }
            guard count > 0 else { return count < 0 ? reason : EIO }
            bytes = bytes.dropFirst(count)
        }
        return 0
    }

    /// Ends the program as soon as nobody reads its output any more, whether there is something to
    /// write or not: for commands that wait for events.
    package func endWithReader() {
        let number = number
        do throws(HostError) {
            try ServiceThread.start("output-watch") {
                // A closed reader is reported without being asked for.
                var readiness = pollfd(fd: number, events: 0, revents: 0)
                while poll(&readiness, 1, -1) < 0 && errno == EINTR {}
                if readiness.revents & Int16(POLLERR | POLLHUP) != 0 { Self.endAsReaderHas() }
            }
        } catch {
            Self.error.write(
                "stillpoint: \(error); should the reader of the output go away, this is noticed at "
                    + "the next event\n")
        }
    }

    /// Libraries have the signal ignored.
    private static func endAsReaderHas() -> Never {
        signal(SIGPIPE, SIG_DFL)
        var set = sigset_t()
        sigemptyset(&set)
        sigaddset(&set, SIGPIPE)
        pthread_sigmask(SIG_UNBLOCK, &set, nil)
        raise(SIGPIPE)
        // Reached where a tracer keeps the signal.
        Glibc.exit(128 + SIGPIPE)
    }

    /// Columns of the terminal; nil when the output goes elsewhere.
    package var columns: Int? { terminal?.columns }

    /// Rows of the terminal; nil when the output goes elsewhere.
    package var rows: Int? { terminal?.rows }

    private var terminal: (columns: Int, rows: Int)? {
        guard isatty(number) == 1 else { return nil }
        var size = winsize()
        guard ioctl(number, UInt(TIOCGWINSZ), &size) == 0 else { return (80, 24) }
        return (size.ws_col > 0 ? Int(size.ws_col) : 80, size.ws_row > 0 ? Int(size.ws_row) : 24)
    }
}
