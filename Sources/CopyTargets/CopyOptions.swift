package import CopyPlanning

/// What else a copy is made with.
package struct CopyOptions: Sendable {
    /// What the target must keep clear of.
    package var surroundings = CopySurroundings()
    /// Where records of block devices are.
    package var diskRecords = ""
    /// The file that holds the record, where the user names one.
    package var recordPath: String?
    /// What was there is kept as `TARGET@NAME`.
    package var keep: String?
    /// The cut's name was made for this copy alone.
    package var isNameOwned = false
    /// The complete copy that a qcow2 target lies on.
    package var onto: String?
    /// Bytes of data per second at most.
    package var rateLimit: UInt64?
    /// Makes TLS connections to NBD servers.
    package var secure: NBDPlace.Securing?

    package init() {}
}
