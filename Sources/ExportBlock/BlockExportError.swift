internal import Glibc

/// Why a block device could not be made or taken away, for people.
package struct BlockExportError: Error, CustomStringConvertible {
    /// What kind of failure it is; decides the exit code.
    package enum Kind: Sendable {
        /// In use, or at a bound.
        case busy
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

    static func text(_ errnoValue: Int32) -> String { String(cString: strerror(errnoValue)) }
}
