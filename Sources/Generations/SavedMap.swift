internal import Host
internal import BlockModel
internal import CLinux
internal import ChangeTracking
internal import Glibc

// The change map in the state directory: written at a clean stop, read and made unclean at an
// attach. All of it blocks.
//
// Invariants
// - A file marked clean is complete and on stable storage: it is written under another name,
//   synced, and only then put in place.
// - What is read is checked page by page before it is used.

/// A device's map in the state directory.
struct SavedMap {
    let path: String

    private static let pageByteCount = 4096
    private static let pagesPerGroup = Int(MapFileBody.pagesPerGroup)

    init(of name: ObjectName, in directory: String) { path = "\(directory)/\(name).map" }

    /// Why a map was not loaded.
    enum LoadFailure: Error {
        case damaged(MapFileHeader.Damage)
        /// The memory that it is loaded into has no room.
        case noRoom(Fault)
    }

    // MARK: Attach

    /// The header, checked.
    func header() -> Finding<MapFileHeader> {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let failure = errno
            return failure == ENOENT ? .absent : .damaged(.unreadable(failure))
        }
        defer { close(descriptor) }
        guard let bytes = readBytes(Self.pageByteCount, of: descriptor, at: 0) else {
            return .damaged(.unreadable(errno))
        }
        do throws(MapFileHeader.Damage) {
            let header = try MapFileHeader(decoding: bytes.span.bytes)
            return header.state == .running ? .damaged(.impossible) : .found(header)
        } catch { return .damaged(error) }
    }

    /// Loads every entry into fresh memory.
    func load(_ header: MapFileHeader, into memory: ChangeMapMemory) throws(LoadFailure) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw .damaged(.unreadable(errno)) }
        defer { close(descriptor) }
        let pageCount = ChangeMap.pageCount(chunkCount: header.chunkCount)
        var map = memory.changeMap(current: header.epoch, newestBase: header.newestBase)
        let groupCount = (pageCount + MapFileBody.pagesPerGroup - 1) / MapFileBody.pagesPerGroup
        for group in 0..<groupCount {
            let checksums = try read(
                descriptor, at: MapFileBody.byteOffset(ofGroup: group))
            let first = group * MapFileBody.pagesPerGroup
            for page in first..<min(first + MapFileBody.pagesPerGroup, pageCount) {
                do throws(MapFileHeader.Damage) {
                    let checksum = try MapFileBody.checksum(
                        at: Int(page - first), ofGroup: checksums.span.bytes)
                    if checksum == 0 { continue }
                    try loadPage(page, descriptor, checksum, header, &map, memory)
                } catch {
                    guard case .unreadable(let failure) = error, failure < 0 else {
                        throw .damaged(error)
                    }
                    throw .noRoom(Fault(errnoValue: -failure))
                }
            }
        }
    }

    /// A negative errno value in the damage says that the memory had no room.
    private func loadPage(
        _ page: UInt64, _ descriptor: Int32, _ checksum: UInt32, _ header: MapFileHeader,
        _ map: inout ChangeMap, _ memory: ChangeMapMemory
    ) throws(MapFileHeader.Damage) {
        guard
            let bytes = readBytes(
                Self.pageByteCount, of: descriptor, at: Int(MapFileBody.byteOffset(ofPage: page)))
        else { throw .unreadable(errno) }
        guard memory.reserve(page: page) else { throw .unreadable(-errno) }
        try MapFileBody.decodePage(
            bytes.span.bytes, checksum: checksum, epoch: header.epoch.rawValue,
            into: memory.pageEntries(page))
        map.pageReserved(page)
    }

    private func read(
        _ descriptor: Int32, at offset: UInt64
    ) throws(LoadFailure) -> [UInt8] {
        guard let bytes = readBytes(Self.pageByteCount, of: descriptor, at: Int(offset)) else {
            throw .damaged(.unreadable(errno))
        }
        guard bytes.count == Self.pageByteCount else { throw .damaged(.truncated) }
        return bytes
    }

    /// Makes the file unclean on stable storage.
    func invalidate(_ header: MapFileHeader) throws(Fault) {
        guard header.state == .clean else { return }
        var header = header
        header.state = .invalid
        let descriptor = open(path, O_WRONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw Fault(errnoValue: errno) }
        defer { close(descriptor) }
        guard writeAll(Self.page(of: header), to: descriptor, at: 0), fsync(descriptor) == 0
        else { throw Fault(errnoValue: errno) }
    }

    /// Keeps one damaged file for later analysis.
    func setAside() throws(Fault) {
        guard rename(path, path + ".damaged") == 0 else { throw Fault(errnoValue: errno) }
        do throws(HostError) { try DurableFile.syncDirectory(of: path) } catch {
            throw Fault(errnoValue: error.errnoValue)
        }
    }

    // MARK: Clean stop

    /// Writes the map, which nobody changes any more, and marks it clean.
    func save(_ header: MapFileHeader, _ memory: ChangeMapMemory) throws(Fault) {
        do throws(HostError) {
            try DurableFile.replace(path) { descriptor throws(HostError) in
                var clean = header
                clean.state = .clean
                guard writeBody(header, memory, to: descriptor),
                    writeAll(Self.page(of: clean), to: descriptor, at: 0)
                else { throw HostError(path, errno) }
            }
        } catch { throw Fault(errnoValue: error.errnoValue) }
    }

    /// False with errno when it cannot be written.
    private func writeBody(
        _ header: MapFileHeader, _ memory: ChangeMapMemory, to descriptor: Int32
    ) -> Bool {
        let map = memory.changeMap(current: header.epoch, newestBase: header.newestBase)
        let pageCount = ChangeMap.pageCount(chunkCount: header.chunkCount)
        let groupCount = (pageCount + MapFileBody.pagesPerGroup - 1) / MapFileBody.pagesPerGroup
        var bytes = [UInt8](repeating: 0, count: Self.pageByteCount)
        for group in 0..<groupCount {
            var checksums = [UInt32](repeating: 0, count: Self.pagesPerGroup)
            let first = group * MapFileBody.pagesPerGroup
            for page in first..<min(first + MapFileBody.pagesPerGroup, pageCount)
            where map.isReserved(page: page) {
                Self.fill(&bytes) { span in
                    MapFileBody.encodePage(
                        UnsafeBufferPointer(memory.pageEntries(page)), into: &span)
                }
                checksums[Int(page - first)] = MapFileBody.checksum(ofPage: bytes.span.bytes)
                let offset = Int(MapFileBody.byteOffset(ofPage: page))
                guard writeAll(bytes, to: descriptor, at: offset) else { return false }
            }
            Self.fill(&bytes) { span in MapFileBody.encodeGroup(checksums.span, into: &span) }
            let offset = Int(MapFileBody.byteOffset(ofGroup: group))
            guard writeAll(bytes, to: descriptor, at: offset) else { return false }
        }
        return true
    }

    private static func page(of header: MapFileHeader) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: pageByteCount)
        fill(&bytes) { span in header.encode(into: &span) }
        return bytes
    }

    private static func fill(_ bytes: inout [UInt8], _ body: (inout MutableRawSpan) -> Void) {
        var span = bytes.mutableSpan
        var raw = span.mutableBytes
        body(&raw)
    }
}
