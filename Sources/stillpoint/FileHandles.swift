import Glibc

/// Standard output and standard error, written unbuffered and whole.
struct FileHandles {
    static let output = FileHandles(number: STDOUT_FILENO)
    static let error = FileHandles(number: STDERR_FILENO)

    private let number: Int32

    /// Writes all of `text`. A reader that has gone away ends the program as it does any other;
    /// nothing else can be told to anybody when these two fail.
    func write(_ text: String) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(number, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return }
            bytes = bytes.dropFirst(count)
        }
    }

    /// Columns of the terminal, nil when it is none.
    var columns: Int? {
        guard isatty(number) == 1 else { return nil }
        var size = winsize()
        guard ioctl(number, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else { return 80 }
        return Int(size.ws_col)
    }
}
