package import BlockModel
package import CopyPlanning
internal import FoundationEssentials
internal import Glibc
internal import Synchronization

// A copy in an RBD image. Each finished copy leaves a snapshot with the name of its cut, so Ceph
// keeps the versions, and a description of the cut among the image's metadata.
//
//   image written, flushed -> snapshot made -> described -> record complete
//
// Invariants
// - The image equals the cut of its record if the snapshot of that name has the number that the
//   record holds, and nothing in the image differs from it: Ceph knows that exactly.
// - Half-way between two cuts it differs from the snapshot of the first one where something changed
//   until the second one, and nowhere else.

/// An RBD image; see the head of this file. Everything blocks.
package final class RBDMedium: CopyMedium {
    private let place: RBDPlace
    private let pool: RBDPool
    private let image: Mutex<RBDImage?>
    package let isNew: Bool
    /// The number of the snapshot that the image equals, or that it is on its way from.
    private let version = Mutex<UInt64?>(nil)
    /// The snapshot that an interrupted copy may have made already.
    private let own = Mutex<String?>(nil)

    /// Ceph drops a client that was killed after half a minute, and later when it is busy: seconds.
    private static let watcherSecondsMax = 90
    private static let watcherInterval: UInt32 = 200_000
    private static let pieceByteCount: UInt64 = 1 << 20

    init(
        _ place: RBDPlace, creates: Bool, cut: CopyCut, _ options: CopyOptions
    ) throws(CopyError) {
        guard place.snapshot == nil else {
            throw CopyError(
                .unsuitable,
                "\(place.name) is a version, which is never written to; name the image")
        }
        self.place = place
        let pool = try RBDPool(place)
        self.pool = pool
        var found = try RBDImage(place, pool, snapshot: nil, isReadOnly: false)
        isNew = found == nil
        if found == nil {
            guard creates else {
                throw CopyError(
                    .unfit, "there is no image \(place.name); make a full copy, without --since")
            }
            try RBDImage.make(place, pool, size: cut.size)
            found = try RBDImage(place, pool, snapshot: nil, isReadOnly: false)
        }
        guard let found else {
            throw CopyError(.failed, "\(place.name) was removed by somebody else")
        }
        image = Mutex(found)
        for _ in 0..<Self.watcherSecondsMax * 1_000_000 / Int(Self.watcherInterval) {
            if try found.watcherCount() <= 1 { return }
            usleep(Self.watcherInterval)
        }
        throw CopyError(
            .busy,
            "target \(place.name) is in use by another client of Ceph (`rbd status` names it); stop "
                + "that, or name another target")
    }

    package var path: String { place.name }
    package var beginsFresh: Bool { false }
    package var canGrow: Bool { true }
    package var keepsVersions: Bool { true }
    package var syncsWhileWriting: Bool { true }

    private func open() throws(CopyError) -> RBDImage {
        guard let image = image.withLock({ $0 }) else {
            preconditionFailure("a target that was withdrawn is used no more")
        }
        return image
    }

    package func file() throws(CopyError) -> CopyRecord.File {
        let image = try open()
        var disk = try image.disk()
        disk.version = version.withLock { $0 }
        return CopyRecord.File(
            isBlockDevice: true, size: image.size, inode: 0, changedNanoseconds: 0, disk: disk)
    }

    package func content() throws(CopyError) -> String? {
        let isThere = Mutex(false)
        try open().differences(since: nil) { _ in isThere.withLock { $0 = true } }
        return isThere.withLock { $0 } ? "data that no record describes" : nil
    }

    // MARK: What it equals

    package func holds(
        _ record: CopyRecord, except changes: RangeSpool?
    ) throws(CopyError) -> Bool? {
        if record.state == .running { own.withLock { $0 = record.to?.snapshot } }
        guard let base = record.equals ?? record.from else {
            return try record.samples.map { samples throws(CopyError) in
                try CopySamples.match(samples, of: try open()) == true
            }
        }
        let image = try open()
        guard let number = try image.snapshotNumber(base.snapshot),
            number == record.target.disk?.version,
            try Self.equals(image, base.snapshot, except: changes)
        else { return false }
        version.withLock { $0 = number }
        return true
    }

    /// Whether the image equals one of its snapshots, those places aside that are in `changes`.
    package static func equals(
        _ image: RBDImage, _ snapshot: String, except changes: RangeSpool?
    ) throws(CopyError) -> Bool {
        guard
            let former = try RBDImage(
                image.place, image.pool, snapshot: snapshot, isReadOnly: true)
        else { return false }
        // Nearly always nothing differs, which is found at once.
        let isTouched = Mutex(false)
        try image.differences(since: snapshot, byObjects: true) { _ in
            isTouched.withLock { $0 = true }
        }
        guard isTouched.withLock({ $0 }) else { return true }
        let found = Mutex<[ByteRange]>([])
        try image.differences(since: snapshot) { range in
            found.withLock { ranges in
                if let last = ranges.last, last.end == range.offset {
                    ranges[ranges.count - 1] = ByteRange(
                        offset: last.offset, length: last.length + range.length)
                } else {
                    ranges.append(range)
                }
            }
        }
        var cursor = RangeSpool.Cursor(changes ?? RangeSpool.none)
        var change = try cursor.next()
        for range in found.withLock({ $0 }).sorted(by: { $0.offset < $1.offset }) {
            // Ceph may tell more than what changed: the bytes outside of the changes decide.
            var position = range.offset
            while position < range.end {
                while let its = change, its.end <= position { change = try cursor.next() }
                if let its = change, its.offset <= position {
                    position = min(its.end, range.end)
                    continue
                }
                let end = min(range.end, change?.offset ?? range.end)
                guard try Self.isSame(image, former, position, end) else { return false }
                position = end
            }
        }
        return true
    }

    /// Bytes beyond the end of one of the two do not count as different: the copy decides about its
    /// end.
    private static func isSame(
        _ one: RBDImage, _ other: RBDImage, _ start: UInt64, _ end: UInt64
    ) throws(CopyError) -> Bool {
        let count = Int(pieceByteCount)
        let buffers = [0, 1].map { _ in
            UnsafeMutableRawPointer.allocate(byteCount: count, alignment: Int(blockByteCount))
        }
        defer { for buffer in buffers { buffer.deallocate() } }
        let end = min(end, one.size, other.size)
        var position = start
        while position < end {
            let length = Int(min(end - position, pieceByteCount))
            try one.read(position, into: buffers[0], length)
            try other.read(position, into: buffers[1], length)
            guard memcmp(buffers[0], buffers[1], length) == 0 else { return false }
            position += UInt64(length)
        }
        return true
    }

    package func samples(
        within ranges: [ByteRange]?, written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample]? {
        // Snapshots tell more; only a full copy that is under way has none yet.
        guard ranges != nil else { return nil }
        return try CopySamples.taken(of: try open(), within: ranges, written: written)
    }

    // MARK: Writing

    package func prepare(_ size: UInt64, for plan: CopyPlan) throws(CopyError) {
        let image = try open()
        if image.size != size { try image.resize(to: size) }
    }

    package func sinks(_ count: Int) throws(CopyError) -> [any CopySink] {
        Array(repeating: try open(), count: count)
    }

    package func sync() throws(CopyError) { try open().flush() }

    package func settle() {}

    package func checkName(of cut: CopyCut) throws(CopyError) {
        guard try open().snapshotNumber(cut.snapshot) != nil,
            own.withLock({ $0 }) != cut.snapshot
        else { return }
        throw CopyError(
            .busy,
            "\(place.name) has a snapshot \(cut.snapshot) already; name the cut otherwise, or remove "
                + "that (rbd snap rm)")
    }

    package func complete(_ cut: CopyCut) throws(CopyError) {
        let image = try open()
        if try image.snapshotNumber(cut.snapshot) != nil {
            // Of this very copy, which was killed just after it had made it.
            try checkName(of: cut)
            try image.removeSnapshot(cut.snapshot)
        }
        try image.makeSnapshot(cut.snapshot)
        let number = try image.snapshotNumber(cut.snapshot)
        version.withLock { $0 = number }
    }

    package func describe(_ device: String, _ cut: CopyCut) throws(CopyError) {
        try open().setMetadata(
            RBDVersion.key(cut.snapshot), RBDVersion(device: device, cut: cut).text)
    }

    package func empty() throws(CopyError) { try open().resize(to: 0) }

    package func withdraw() {
        image.withLock { $0 = nil }
        if isNew { _ = pool.library.remove(pool.context, place.image) }
    }
}

/// What a snapshot of an RBD image is a copy of.
package struct RBDVersion: Codable {
    /// The device that was copied.
    package var device: String
    /// The cut that the snapshot equals.
    package var cut: CopyCut

    /// The key of the image's metadata under which a snapshot is described.
    package static func key(_ snapshot: String) -> String { "stillpoint.\(snapshot)" }

    init(device: String, cut: CopyCut) {
        self.device = device
        self.cut = cut
    }

    /// Nil for what is no such description.
    package init?(_ text: String) {
        guard let version = try? JSONDecoder().decode(RBDVersion.self, from: Data(text.utf8)) else {
            return nil
        }
        self = version
    }

    var text: String {
        do {
            return String(decoding: try JSONEncoder().encode(self), as: UTF8.self)
        } catch { preconditionFailure("a description has a text form: \(error)") }
    }
}
