/// Why an origin could not be attached, for people.
package struct AttachError: Error, CustomStringConvertible {
    /// What kind of failure it is; decides the exit code.
    package enum Kind: Sendable {
        /// The origin does not exist.
        case notFound
        /// Somebody else uses it, or it is in use here.
        case busy
        /// It can never be attached like this.
        case unsuitable
        /// The system refused.
        case failed
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
