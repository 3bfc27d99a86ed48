/// Why the server could not be started, for people.
package struct NBDServerError: Error, CustomStringConvertible {
    /// What kind of failure it is; decides the exit code.
    package enum Kind: Sendable {
        /// Somebody else listens there.
        case busy
        /// The system refused.
        case failed
        /// It can never work like this.
        case invalid
    }

    package let kind: Kind
    /// Names the object, the reason and the way out.
    package let message: String

    package init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    package var description: String { message }
}
