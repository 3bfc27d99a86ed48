import Glibc

/// Standard output and standard error, written unbuffered and whole.
struct FileHandles {
    static let output = FileHandles(number: STDOUT_FILENO)
    static let error = FileHandles(number: STDERR_FILENO)

    private let number: Int32

    /// Writes all of `text`. A reader that has gone away ends the program as it does any other;
    /// nothing else can be told to anybody when these two fail.
    func write(_ text: String) { write(Array(text.utf8)) }

    /// The same with bytes.
    func write(_ all: [UInt8]) {
        var bytes = all[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(number, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return }
            bytes = bytes.dropFirst(count)
        }
    }

    /// Columns of the terminal, nil when it is none.
    var columns: Int? { terminal?.columns }

    /// Rows of the terminal, nil when it is none.
    var rows: Int? { terminal?.rows }

    private var terminal: (columns: Int, rows: Int)? {
        guard isatty(number) == 1 else { return nil }
        var size = winsize()
        guard ioctl(number, UInt(TIOCGWINSZ), &size) == 0 else { return (80, 24) }
        return (size.ws_col > 0 ? Int(size.ws_col) : 80, size.ws_row > 0 ? Int(size.ws_row) : 24)
    }
}
