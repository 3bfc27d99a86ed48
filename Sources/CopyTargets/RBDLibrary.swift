internal import CLinux
internal import CopyPlanning
internal import Glibc
internal import Synchronization

// librbd and librados, loaded when an RBD image is named for the first time: the program runs where
// they are not installed. Their C interface is stable since Ceph 13 (2018).

/// Functions of librbd and librados; see the head of this file.
struct RBDLibrary: Sendable {
    typealias Handle = UnsafeMutableRawPointer
    typealias Text = UnsafePointer<CChar>
    typealias DiffBody = @convention(c) (UInt64, Int, Int32, Handle?) -> Int32

    let radosCreate: @convention(c) (UnsafeMutablePointer<Handle?>, Text?) -> Int32
    let radosReadFile: @convention(c) (Handle, Text?) -> Int32
    let radosParseEnvironment: @convention(c) (Handle, Text?) -> Int32
    let radosSet: @convention(c) (Handle, Text, Text) -> Int32
    let radosConnect: @convention(c) (Handle) -> Int32
    let radosShutdown: @convention(c) (Handle) -> Void
    let radosFSID: @convention(c) (Handle, UnsafeMutablePointer<CChar>, Int) -> Int32
    let contextCreate: @convention(c) (Handle, Text, UnsafeMutablePointer<Handle?>) -> Int32
    let contextDestroy: @convention(c) (Handle) -> Void
    let contextSetNamespace: @convention(c) (Handle, Text) -> Void

    let create: @convention(c) (Handle, Text, UInt64, UnsafeMutablePointer<Int32>) -> Int32
    let remove: @convention(c) (Handle, Text) -> Int32
    let open: @convention(c) (Handle, Text, UnsafeMutablePointer<Handle?>, Text?) -> Int32
    let openReadOnly: @convention(c) (Handle, Text, UnsafeMutablePointer<Handle?>, Text?) -> Int32
    let close: @convention(c) (Handle) -> Int32
    let size: @convention(c) (Handle, UnsafeMutablePointer<UInt64>) -> Int32
    let resize: @convention(c) (Handle, UInt64) -> Int32
    let identifier: @convention(c) (Handle, UnsafeMutablePointer<CChar>, Int) -> Int32
    let read: @convention(c) (Handle, UInt64, Int, Handle) -> Int
    let write: @convention(c) (Handle, UInt64, Int, UnsafeRawPointer) -> Int
    let zero: @convention(c) (Handle, UInt64, Int, Int32, Int32) -> Int
    let flush: @convention(c) (Handle) -> Int32
    let makeSnapshot: @convention(c) (Handle, Text) -> Int32
    let removeSnapshot: @convention(c) (Handle, Text) -> Int32
    let snapshotNumber: @convention(c) (Handle, Text, UnsafeMutablePointer<UInt64>) -> Int32
    let listSnapshots:
        @convention(c) (Handle, UnsafeMutableRawPointer?, UnsafeMutablePointer<Int32>)
            -> Int32
    let endSnapshotList: @convention(c) (UnsafeMutableRawPointer) -> Void
    let diff:
        @convention(c) (Handle, Text?, UInt64, UInt64, UInt8, UInt8, DiffBody, Handle?) -> Int32
    let listWatchers:
        @convention(c) (Handle, UnsafeMutableRawPointer?, UnsafeMutablePointer<Int>)
            -> Int32
    let endWatcherList: @convention(c) (UnsafeMutableRawPointer, Int) -> Void
    let setMetadata: @convention(c) (Handle, Text, Text) -> Int32
    let metadata:
        @convention(c) (Handle, Text, UnsafeMutablePointer<CChar>?, UnsafeMutablePointer<Int>) ->
            Int32

    private static let names = (rados: "librados.so.2", rbd: "librbd.so.1")

    /// The library, loaded once.
    static let shared = Result { () throws(CopyError) in try RBDLibrary() }

    private init() throws(CopyError) {
        let rados = try Self.load(Self.names.rados)
        let rbd = try Self.load(Self.names.rbd)
        radosCreate = try Self.find("rados_create", in: rados)
        radosReadFile = try Self.find("rados_conf_read_file", in: rados)
        radosParseEnvironment = try Self.find("rados_conf_parse_env", in: rados)
        radosSet = try Self.find("rados_conf_set", in: rados)
        radosConnect = try Self.find("rados_connect", in: rados)
        radosShutdown = try Self.find("rados_shutdown", in: rados)
        radosFSID = try Self.find("rados_cluster_fsid", in: rados)
        contextCreate = try Self.find("rados_ioctx_create", in: rados)
        contextDestroy = try Self.find("rados_ioctx_destroy", in: rados)
        contextSetNamespace = try Self.find("rados_ioctx_set_namespace", in: rados)
        create = try Self.find("rbd_create", in: rbd)
        remove = try Self.find("rbd_remove", in: rbd)
        open = try Self.find("rbd_open", in: rbd)
        openReadOnly = try Self.find("rbd_open_read_only", in: rbd)
        close = try Self.find("rbd_close", in: rbd)
        size = try Self.find("rbd_get_size", in: rbd)
        resize = try Self.find("rbd_resize", in: rbd)
        identifier = try Self.find("rbd_get_id", in: rbd)
        read = try Self.find("rbd_read", in: rbd)
        write = try Self.find("rbd_write", in: rbd)
        zero = try Self.find("rbd_write_zeroes", in: rbd)
        flush = try Self.find("rbd_flush", in: rbd)
        makeSnapshot = try Self.find("rbd_snap_create", in: rbd)
        removeSnapshot = try Self.find("rbd_snap_remove", in: rbd)
        snapshotNumber = try Self.find("rbd_snap_get_id", in: rbd)
        listSnapshots = try Self.find("rbd_snap_list", in: rbd)
        endSnapshotList = try Self.find("rbd_snap_list_end", in: rbd)
        diff = try Self.find("rbd_diff_iterate2", in: rbd)
        listWatchers = try Self.find("rbd_watchers_list", in: rbd)
        endWatcherList = try Self.find("rbd_watchers_list_cleanup", in: rbd)
        setMetadata = try Self.find("rbd_metadata_set", in: rbd)
        metadata = try Self.find("rbd_metadata_get", in: rbd)
    }

    private static func load(_ name: String) throws(CopyError) -> Handle {
        guard let library = dlopen(name, RTLD_NOW | RTLD_GLOBAL) else {
            let reason = dlerror().map { String(cString: $0) } ?? "no reason is told"
            throw CopyError(
                .failed,
                "RBD images are reached through \(name), which cannot be loaded (\(reason)); install "
                    + "it (Debian: librbd1)")
        }
        return library
    }

    private static func find<Function>(
        _ name: String, in library: Handle
    ) throws(CopyError) -> Function {
        guard let symbol = dlsym(library, name) else {
            throw CopyError(.failed, "librbd here has no \(name); install that of Ceph 14 or later")
        }
        // SAFETY: a function of that name has the C type that Ceph's headers declare, which the
        // properties above repeat.
        return unsafeBitCast(symbol, to: Function.self)
    }
}
