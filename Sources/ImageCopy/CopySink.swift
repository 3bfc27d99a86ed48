package import BlockModel

/// What the bytes of an image go into. Used by several threads at once, for ranges that do not
/// overlap.
package protocol CopySink: Sendable {
    /// Writes bytes, which may be used again when it returns.
    func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError)

    /// Makes a range read as zero.
    func zero(_ range: ByteRange) throws(CopyError)

    /// One of the threads has given all it has: returns when that was taken.
    func drain() throws(CopyError)
}

/// What a target must keep clear of: what the service uses and shows.
package struct CopySurroundings: Sendable {
    /// Something of the service, and where it is.
    package struct Place: Sendable {
        package var name: String
        package var path: String

        package init(name: String, path: String) {
            self.name = name
            self.path = path
        }
    }

    /// Devices and the paths of their origins.
    package var origins: [Place]
    /// What local block devices show, and their paths.
    package var blocks: [Place]

    package init(origins: [Place] = [], blocks: [Place] = []) {
        self.origins = origins
        self.blocks = blocks
    }
}
