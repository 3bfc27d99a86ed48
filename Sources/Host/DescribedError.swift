/// A failure in words for people, and what kind of failure it is.
package struct DescribedError<Kind: Equatable & Sendable>: Error, Equatable, CustomStringConvertible
{
    /// Decides the exit code.
    package let kind: Kind
    /// Names the object, the reason and the way out.
    package let message: String

    package init(_ kind: Kind, _ message: String) {
        self.kind = kind
        self.message = message
    }

    package var description: String { message }
}
