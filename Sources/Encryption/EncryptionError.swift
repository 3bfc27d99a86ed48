/// Why certificates or keys cannot be used, for people.
package struct EncryptionError: Error, CustomStringConvertible {
    package enum Kind: Sendable {
        /// What was given contradicts itself or is not what it should be.
        case invalid
        /// The system refused.
        case failed
    }

    package let kind: Kind
    package let message: String

    package var description: String { message }
}
