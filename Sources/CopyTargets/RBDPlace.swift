package import CopyPlanning
internal import Glibc

/// An RBD image as the user names it: rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT].
package struct RBDPlace: Equatable, Sendable {
    package static let prefix = "rbd:"

    /// As it was given.
    package let name: String
    let pool: String
    let namespace: String?
    let image: String
    /// One of its versions.
    package let snapshot: String?

    /// Nil for the name of something else.
    package init?(parsing name: String) throws(CopyError) {
        guard name.hasPrefix(Self.prefix) else { return nil }
        self.name = name
        let parts = name.dropFirst(Self.prefix.count).split(
            separator: "@", maxSplits: 1, omittingEmptySubsequences: false)
        let words = parts[0].split(separator: "/", omittingEmptySubsequences: false)
        guard words.count == 2 || words.count == 3, !words.contains(where: { $0.isEmpty }),
            parts.count == 1 || !parts[1].isEmpty
        else {
            throw CopyError(
                .unsuitable,
                "\"\(name)\" names no RBD image: give rbd:POOL/IMAGE, or rbd:POOL/IMAGE@SNAPSHOT "
                    + "for one of its versions")
        }
        pool = String(words[0])
        namespace = words.count == 3 ? String(words[1]) : nil
        image = String(words[words.count - 1])
        snapshot = parts.count == 2 ? String(parts[1]) : nil
    }

    /// Where the record of the image is; nil when there is no such image.
    func recordFile(in directory: String) throws(CopyError) -> CopyRecordFile? {
        let pool = try RBDPool(self)
        guard let image = try RBDImage(self, pool, snapshot: nil, isReadOnly: true) else {
            return nil
        }
        return CopyRecordFile(of: try image.disk(), size: 0, in: directory)
    }
}

/// A pool of a Ceph cluster that is connected to.
package final class RBDPool: @unchecked Sendable {
    // SAFETY: what librados gives may be used by any thread.
    let library: RBDLibrary
    let context: RBDLibrary.Handle
    let clusterID: String
    private let cluster: RBDLibrary.Handle

    private static let connectSeconds = "30"

    /// Connects, as the configuration file of Ceph says (CEPH_CONF), and CEPH_ARGS.
    package init(_ place: RBDPlace) throws(CopyError) {
        library = try RBDLibrary.shared.get()
        func failed(_ what: String, _ result: Int32) -> CopyError {
            CopyError(
                .failed,
                "\(place.name): \(what) (\(CopyTarget.text(-result))); see that `rbd -p \(place.pool) "
                    + "ls` works here: Ceph's configuration is read from /etc/ceph or CEPH_CONF")
        }
        var made: RBDLibrary.Handle?
        let result = library.radosCreate(&made, nil)
        guard result == 0, let cluster = made else { throw failed("librados fails", result) }
        self.cluster = cluster
        var reached = library.radosReadFile(cluster, nil)
        if reached >= 0 { reached = library.radosParseEnvironment(cluster, nil) }
        if reached >= 0 {
            reached = library.radosSet(cluster, "client_mount_timeout", Self.connectSeconds)
        }
        if reached >= 0 { reached = library.radosConnect(cluster) }
        guard reached >= 0 else {
            library.radosShutdown(cluster)
            throw failed("the Ceph cluster cannot be reached", reached)
        }
        var id = [CChar](repeating: 0, count: 64)
        let identified = library.radosFSID(cluster, &id, id.count)
        var context: RBDLibrary.Handle?
        let opened =
            identified < 0 ? identified : library.contextCreate(cluster, place.pool, &context)
        guard opened >= 0, let context else {
            library.radosShutdown(cluster)
            throw failed("there is no pool \(place.pool) that can be opened", opened)
        }
        clusterID = String(decoding: id.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
        self.context = context
        if let namespace = place.namespace { library.contextSetNamespace(context, namespace) }
    }

    deinit {
        library.contextDestroy(context)
        library.radosShutdown(cluster)
    }
}
