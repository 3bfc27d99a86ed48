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

    /// A range was given, and counts as done once the target has taken it.
    func finished(_ range: ByteRange, of work: CopyWork)

    /// One of the threads has given all it has: returns when that was taken.
    func drain() throws(CopyError)
}

extension CopySink {
    /// What `write` and `zero` were given was taken when they returned.
    package func finished(_ range: ByteRange, of work: CopyWork) { work.finished(range) }
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
    /// Where it serves NBD.
    package var server: Server

    /// Where a service listens.
    package struct Server: Sendable {
        package var sockets: [String]
        package var ports: [UInt16]

        package init(sockets: [String] = [], ports: [UInt16] = []) {
            self.sockets = sockets
            self.ports = ports
        }
    }

    package init(
        origins: [Place] = [], blocks: [Place] = [], server: Server = Server()
    ) {
        self.origins = origins
        self.blocks = blocks
        self.server = server
    }
}
