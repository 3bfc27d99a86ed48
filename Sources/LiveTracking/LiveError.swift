/// Why a disk in use cannot be tracked, for people.
package struct LiveError: Error, Equatable, Sendable, CustomStringConvertible {
    /// What kind of failure it is.
    package enum Kind: Sendable {
        /// It cannot be tracked as it is.
        case unsuitable
        /// The system refused.
        case failed
    }

    package let kind: Kind
    /// The object, the reason and the way out.
    package let message: String

    package init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    package var description: String { message }
}
