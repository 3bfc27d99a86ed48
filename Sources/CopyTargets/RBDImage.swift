package import BlockModel
internal import CLinux
package import CopyPlanning
internal import Glibc
internal import Synchronization

/// An open RBD image, or one of its snapshots; used by several threads at once. Everything blocks.
package final class RBDImage: @unchecked Sendable, CopyBytes, CopySink {
    // SAFETY: what librbd gives may be used by any thread.
    let place: RBDPlace
    let pool: RBDPool
    private let library: RBDLibrary
    private let handle: RBDLibrary.Handle

    private static let identifierByteCountMax = 256
    private static let zeroByteCountMax: UInt64 = 64 << 20

    /// Opens it; nil when there is none.
    package init?(
        _ place: RBDPlace, _ pool: RBDPool, snapshot: String?, isReadOnly: Bool
    ) throws(CopyError) {
        self.place = place
        self.pool = pool
        library = pool.library
        let open = isReadOnly ? library.openReadOnly : library.open
        var made: RBDLibrary.Handle?
        let result =
            snapshot.map { open(pool.context, place.image, &made, $0) }
            ?? open(pool.context, place.image, &made, nil)
        if result == -ENOENT { return nil }
        guard result >= 0, let handle = made else {
            throw CopyError(
                .failed, "\(place.name) cannot be opened: \(CopyTarget.text(-result))")
        }
        self.handle = handle
    }

    deinit { _ = library.close(handle) }

    /// Makes one of `size` bytes.
    static func make(_ place: RBDPlace, _ pool: RBDPool, size: UInt64) throws(CopyError) {
        var order: Int32 = 0
        var result = pool.library.create(pool.context, place.image, size, &order)
        if result == -EEXIST {
            // It could not be opened: what is there is half of an image, left by a client that was
            // killed while it made it.
            _ = pool.library.remove(pool.context, place.image)
            result = pool.library.create(pool.context, place.image, size, &order)
        }
        guard result >= 0 else {
            throw CopyError(
                .failed, "\(place.name) cannot be made: \(CopyTarget.text(-result))")
        }
    }

    private func failure(_ doing: String, _ result: Int) -> CopyError {
        if result == -Int(ENOSPC) || result == -Int(EDQUOT) {
            return CopyError(
                .failed,
                "target \(place.name) has no room left; make room and run the same command again: it "
                    + "finishes the copy")
        }
        return CopyError(
            .failed,
            "\(place.name) cannot be \(doing) (\(CopyTarget.text(Int32(clamping: -result)))); run "
                + "the same command again")
    }

    private func check(_ doing: String, _ result: Int32) throws(CopyError) {
        guard result >= 0 else { throw failure(doing, Int(result)) }
    }

    // MARK: Facts

    package var size: UInt64 {
        var size: UInt64 = 0
        return library.size(handle, &size) >= 0 ? size : 0
    }

    /// Which image it is, wherever it is named from.
    package func disk() throws(CopyError) -> DiskState {
        var bytes = [CChar](repeating: 0, count: Self.identifierByteCountMax)
        try check("looked at", library.identifier(handle, &bytes, bytes.count))
        let id = String(decoding: bytes.prefix { $0 != 0 }.map(UInt8.init), as: UTF8.self)
        let space = place.namespace.map { $0 + "/" } ?? ""
        return DiskState(
            identity: "\(DiskState.rbdPrefix)\(pool.clusterID)/\(place.pool)/\(space)\(id)",
            boot: "", sequence: 0)
    }

    /// Clients that have it open, this one included.
    func watcherCount() throws(CopyError) -> Int {
        var count = 0
        let result = library.listWatchers(handle, nil, &count)
        guard result == -ERANGE || result >= 0 else { throw failure("looked at", Int(result)) }
        return count
    }

    // MARK: Snapshots

    /// The number of a snapshot; nil when there is none of that name.
    func snapshotNumber(_ name: String) throws(CopyError) -> UInt64? {
        var number: UInt64 = 0
        let result = library.snapshotNumber(handle, name, &number)
        if result == -ENOENT { return nil }
        try check("looked at", result)
        return number
    }

    func makeSnapshot(_ name: String) throws(CopyError) {
        try check("given the snapshot \(name)", library.makeSnapshot(handle, name))
    }

    func removeSnapshot(_ name: String) throws(CopyError) {
        try check("rid of the snapshot \(name)", library.removeSnapshot(handle, name))
    }

    /// What librbd lists a snapshot as.
    private struct SnapshotEntry {
        var number: UInt64
        var size: UInt64
        var name: UnsafePointer<CChar>?
    }

    /// The snapshots, the oldest first.
    package func snapshots() throws(CopyError) -> [(name: String, size: UInt64)] {
        var room: Int32 = 64
        while true {
            let entries = UnsafeMutablePointer<SnapshotEntry>.allocate(capacity: Int(room))
            defer { entries.deallocate() }
            entries.initialize(
                repeating: SnapshotEntry(number: 0, size: 0, name: nil), count: Int(room))
            let result = library.listSnapshots(handle, entries, &room)
            if result == -ERANGE { continue }
            try check("looked at", result)
            let found = UnsafeBufferPointer(start: entries, count: Int(result)).map { entry in
                (
                    name: entry.name.map { String(cString: $0) } ?? "", size: entry.size,
                    number: entry.number
                )
            }
            library.endSnapshotList(entries)
            return found.sorted { $0.number < $1.number }.map { ($0.name, $0.size) }
        }
    }

    func setMetadata(_ key: String, _ value: String) throws(CopyError) {
        try check("described", library.setMetadata(handle, key, value))
    }

    /// The value of a key of the image's metadata; nil when there is none.
    package func metadata(_ key: String) throws(CopyError) -> String? {
        var bytes = [CChar](repeating: 0, count: 4096)
        var count = bytes.count
        var result = library.metadata(handle, key, &bytes, &count)
        if result == -ERANGE {
            bytes = [CChar](repeating: 0, count: count + 1)
            count = bytes.count
            result = library.metadata(handle, key, &bytes, &count)
        }
        if result == -ENOENT { return nil }
        try check("looked at", result)
        return String(
            decoding: bytes.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    /// Where it may differ from one of its snapshots; from zeroes where none is named. With
    /// `byObjects` whole objects are listed, which Ceph knows without asking for each.
    func differences(
        since snapshot: String?, byObjects: Bool = false, _ body: @escaping (ByteRange) -> Void
    ) throws(CopyError) {
        final class Box {
            let body: (ByteRange) -> Void
            init(_ body: @escaping (ByteRange) -> Void) { self.body = body }
        }
        let box = Box(body)
        let call: RBDLibrary.DiffBody = { offset, length, _, box in
            guard let box, length > 0 else { return 0 }
            // SAFETY: the pointer is that of the box above, which outlives the call.
            Unmanaged<Box>.fromOpaque(box).takeUnretainedValue().body(
                ByteRange(offset: offset, length: UInt64(length)))
            return 0
        }
        let context = Unmanaged.passUnretained(box).toOpaque()
        let size = size
        let result =
            snapshot.map { library.diff(handle, $0, 0, size, 1, byObjects ? 1 : 0, call, context) }
            ?? library.diff(handle, nil, 0, size, 1, byObjects ? 1 : 0, call, context)
        withExtendedLifetime(box) {}
        try check("compared with its snapshot", result)
    }

    // MARK: Bytes

    package func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = library.read(handle, offset + UInt64(done), byteCount - done, place + done)
            guard count > 0 else { throw failure("read", count < 0 ? count : -Int(EIO)) }
            done += count
        }
    }

    package func data(in range: ByteRange) -> ByteRange? { range }

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = library.write(
                handle, offset + UInt64(done), byteCount - done, bytes + done)
            guard count > 0 else { throw failure("written", count < 0 ? count : -Int(EIO)) }
            done += count
        }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        var offset = range.offset
        while offset < range.end {
            let count = min(range.end - offset, Self.zeroByteCountMax)
            let result = library.zero(handle, offset, Int(count), 0, 0)
            guard result >= 0 else { throw failure("written", result) }
            offset += count
        }
    }

    package func drain() {}

    func resize(to size: UInt64) throws(CopyError) {
        try check("made \(size) bytes large", library.resize(handle, size))
    }

    /// Everything written is on stable storage when it returns.
    func flush() throws(CopyError) { try check("flushed", library.flush(handle)) }
}
