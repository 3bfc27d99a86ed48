// ImageCopy makes a file or block device equal to an image, wholly or by what changed, so that an
// interruption at any instant leaves something that is known and can be finished.

/// Why a copy was not made: a code that decides the exit status, and a message that names the
/// object, the reason and the way out.
package struct CopyError: Error, Equatable, Sendable, CustomStringConvertible {
    package let code: Code
    package let message: String

    package init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    package var description: String { message }

    /// What kind of error it is.
    package enum Code: Sendable {
        /// The target is in use, or holds something that is not to be overwritten.
        case busy
        /// The target does not equal the cut that the increment begins at.
        case unfit
        /// The target can never be used like this.
        case unsuitable
        /// A system call failed.
        case failed
        /// The image could not be read.
        case unreadable
        /// It does not exist.
        case missing
        /// The user called it off.
        case interrupted
    }
}
