internal import Glibc

/// A system call that failed.
package struct HostError: Error, CustomStringConvertible {
    /// The call, or the path that it was about.
    package let subject: String
    /// Positive errno value.
    package let errnoValue: Int32

    package init(_ subject: String, _ errnoValue: Int32) {
        self.subject = subject
        self.errnoValue = errnoValue
    }

    package var description: String { "\(subject): \(SystemFile.errorText(errnoValue))" }
}
