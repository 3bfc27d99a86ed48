package import Host

/// Why a block device could not be made or taken away.
package typealias BlockExportError = DescribedError<BlockExportFailure>

/// What kind of failure a `BlockExportError` is.
package enum BlockExportFailure: Sendable {
    /// In use, or at a bound.
    case busy
    /// The system refused.
    case failed
}
