/// A kind of difference storage as the user names it: `DIR`, `NEWFILE`, `BLOCKDEV` or
/// `memory:SIZE`.
package enum StorageRequest: Sendable, Equatable {
    case path(String)
    /// Bytes.
    case memory(UInt64)
}
