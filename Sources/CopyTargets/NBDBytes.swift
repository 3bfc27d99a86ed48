package import BlockModel
package import CopyPlanning
package import NBDAccess
internal import Synchronization

/// The bytes of an export, over as many connections as there are threads that read at once.
package final class NBDBytes: CopyBytes {
    package let size: UInt64
    private let name: String
    private let connect: @Sendable () throws(CopyError) -> NBDExport
    /// Connections that nobody uses at this moment.
    private let resting: Mutex<Resting>
    /// What has to live as long as this.
    private let server: QEMUServer?
    private let file: FileBytes?

    private struct Resting: @unchecked Sendable {
        // SAFETY: each connection is used by the one that took it out.
        var exports: [NBDExport] = []
    }

    /// Connects once to learn the size.
    package init(
        _ name: String, server: QEMUServer? = nil, holding file: FileBytes? = nil,
        connect: @escaping @Sendable () throws(CopyError) -> NBDExport
    ) throws(CopyError) {
        self.name = name
        self.connect = connect
        self.server = server
        self.file = file
        let first = try connect()
        size = first.size
        resting = Mutex(Resting())
        give(first)
    }

    /// What a qemu-nbd of our own shows.
    package convenience init(
        server: QEMUServer, _ path: String, holding file: FileBytes? = nil
    ) throws(CopyError) {
        let address = server.address
        try self.init(path, server: server, holding: file) { () throws(CopyError) in
            do throws(NBDAccessError) {
                return try NBDExport(address, export: "")
            } catch { throw CopyError(.failed, "\(path) cannot be read with qemu-nbd (\(error))") }
        }
    }

    private func take() throws(CopyError) -> NBDExport {
        let rested = resting.withLock { resting in
            Resting(exports: resting.exports.popLast().map { [$0] } ?? [])
        }
        if let export = rested.exports.first { return export }
        return try connect()
    }

    private func give(_ export: NBDExport) {
        let box = Resting(exports: [export])
        resting.withLock { $0.exports += box.exports }
    }

    private func failure(_ error: NBDAccessError, _ offset: UInt64) -> CopyError {
        CopyError(.failed, "\(name) cannot be read at \(offset) (\(error))")
    }

    package func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) {
        let export = try take()
        do throws(NBDAccessError) {
            try export.read(offset, into: place, byteCount)
        } catch { throw failure(error, offset) }
        // One that failed is not used again.
        give(export)
    }

    package func data(in range: ByteRange) throws(CopyError) -> ByteRange? {
        let export = try take()
        guard export.hasAllocation else {
            give(export)
            return range
        }
        var position = range.offset
        var begin: UInt64?
        while position < range.end {
            let extents: [NBDExport.Extent]
            do throws(NBDAccessError) {
                extents = try export.status(position, range.end - position)
            } catch { throw failure(error, position) }
            for extent in extents where position < range.end {
                if extent.isZero, let begin {
                    give(export)
                    return ByteRange(offset: begin, length: position - begin)
                }
                if !extent.isZero, begin == nil { begin = position }
                position += min(extent.length, range.end - position)
            }
        }
        give(export)
        return begin.map { ByteRange(offset: $0, length: range.end - $0) }
    }
}
