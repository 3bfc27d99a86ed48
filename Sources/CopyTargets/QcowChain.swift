package import CopyPlanning
internal import Glibc
internal import Host

// What lies on what among copies in qcow2 files. An overlay holds what changed since the copy that
// it lies on, and reads the rest from it: who writes to the lower one changes every upper one, and
// nothing in the upper one tells. The records do: each says which file it lies on, and how that
// file stood.
//
// Invariant: a copy equals its cut only if it and all it lies on are as their records say.

/// Copies in qcow2 files and what they lie on; see the head of this file. Everything blocks.
package enum QcowChain {
    /// The head of a qcow2 file, as far as it matters here.
    package struct Header: Equatable {
        /// Bytes of the disk in it.
        package var size: UInt64
        /// The file that it lies on, as it names it.
        var onto: String?
    }

    private static let magic: UInt32 = 0x5146_49FB
    private static let headerByteCount = 104
    private static let nameByteCountMax = 1023
    /// Files of a chain that are looked at: QEMU itself opens no more.
    private static let depthMax = 1000

    // MARK: Files

    /// Reads the head of a file; nil when it is not a qcow2 file.
    package static func header(_ descriptor: Int32) -> Header? {
        var bytes = [UInt8](repeating: 0, count: headerByteCount)
        guard pread(descriptor, &bytes, bytes.count, 0) == bytes.count else { return nil }
        func number<Value: FixedWidthInteger>(_ place: Int, _ type: Value.Type) -> Value {
            bytes[place..<place + MemoryLayout<Value>.size].reduce(0) { $0 << 8 | Value($1) }
        }
        guard number(0, UInt32.self) == magic, [2, 3].contains(number(4, UInt32.self)) else {
            return nil
        }
        var header = Header(size: number(24, UInt64.self))
        let place = number(8, UInt64.self)
        let count = Int(number(16, UInt32.self))
        guard place != 0 else { return header }
        guard count <= nameByteCountMax, place <= UInt64(UInt32.max) else { return nil }
        var name = [UInt8](repeating: 0, count: count)
        guard pread(descriptor, &name, count, off_t(place)) == count else { return nil }
        header.onto = String(decoding: name, as: UTF8.self)
        return header
    }

    /// How a file looks: its size is that of the disk in it, 0 when there is none.
    package static func file(_ descriptor: Int32, _ path: String) throws(CopyError)
        -> CopyRecord.File
    {
        var found = stat()
        guard fstat(descriptor, &found) == 0 else {
            throw CopyError(.failed, "\(path): \(CopyTarget.text(errno))")
        }
        return CopyRecord.File(
            isBlockDevice: false, size: header(descriptor)?.size ?? UInt64(found.st_size),
            inode: UInt64(found.st_ino),
            changedNanoseconds: Int64(found.st_mtim.tv_sec) * 1_000_000_000
                + Int64(found.st_mtim.tv_nsec))
    }

    // MARK: Names

    private static func directory(of path: String) -> String {
        let slash = path.lastIndex(of: "/") ?? path.startIndex
        return slash == path.startIndex ? "" : String(path[..<slash])
    }

    /// What `path` is called in a file at `other`: by its name alone where both are in one
    /// directory, so that the directory can be moved.
    package static func reference(to path: String, from other: String) throws(CopyError) -> String {
        let name = String(path[path.index(after: path.lastIndex(of: "/") ?? path.startIndex)...])
        // QEMU takes what comes before a colon for a protocol.
        let isNear = directory(of: path) == directory(of: other) && !name.contains(":")
        let reference = isNear ? name : path
        guard reference.utf8.count <= nameByteCountMax else {
            throw CopyError(
                .unsuitable,
                "the name \(path) is too long for a backing file; put both files in one directory")
        }
        return reference
    }

    /// The path that a file at `path` names `reference`.
    private static func resolve(_ reference: String, from path: String) -> String {
        reference.hasPrefix("/") ? reference : "\(directory(of: path))/\(reference)"
    }

    // MARK: Chains

    /// A copy that something is to lie on, as its plan needs it. Throws when it or what it lies on
    /// is not what its record says.
    package static func facts(
        of path: String
    ) throws(CopyError) -> (facts: CopyTargetFacts, found: CopyRecordFound) {
        guard path.hasSuffix(CopyRequest.qcowSuffix) else {
            throw CopyError(
                .unsuitable,
                "\(path) is not a qcow2 file; any other copy is brought forward in place, so nothing "
                    + "can use it as its backing file")
        }
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            let reason = errno
            throw CopyError(
                reason == ENOENT ? .unfit : .failed,
                "\(path): \(CopyTarget.text(reason))"
                    + (reason == ENOENT ? "; make a full copy, without --onto" : ""))
        }
        defer { close(descriptor) }
        guard flock(descriptor, LOCK_SH | LOCK_NB) == 0 else {
            throw CopyError(
                .busy, "copy \(path) is being written at this moment; wait for that")
        }
        let found = try CopyRecordFile(besideTarget: path).load()
        let facts = CopyTargetFacts(path: path, file: try file(descriptor, path))
        if case .record(let record) = found, record.state == .complete,
            let doubt = try doubt(path, record, header(descriptor))
        {
            throw CopyError(
                .unfit,
                "\(path) does not equal the cut of its record: \(doubt); make a full copy")
        }
        return (facts, found)
    }

    /// Why a complete copy is not what its record says, as far as what it lies on is concerned; nil
    /// when it is.
    package static func doubt(
        _ path: String, _ record: CopyRecord, _ header: Header?
    ) throws(CopyError) -> String? {
        var (path, record, header) = (path, record, header)
        for _ in 0..<depthMax {
            guard let its = header else { return "\(path) is not a qcow2 file" }
            guard its.onto == record.onto else {
                return "\(path) has the backing file \(its.onto ?? "(none)"), and its record says "
                    + (record.onto ?? "(none)")
            }
            guard let onto = record.onto else { return nil }
            let lower = resolve(onto, from: path)
            let descriptor = open(lower, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else {
                return "its backing file \(lower) cannot be opened (\(CopyTarget.text(errno)))"
            }
            defer { close(descriptor) }
            guard case .record(let below) = try CopyRecordFile(besideTarget: lower).load(),
                below.state == .complete
            else { return "its backing file \(lower) has no record of a complete copy" }
            let file = try file(descriptor, lower)
            guard file.changedNanoseconds == below.target.changedNanoseconds,
                file.size == below.target.size
            else { return "its backing file \(lower) was changed since it was copied" }
            // It was one copy when the upper one was made, and is another now.
            guard record.ontoCut.map({ below.equals?.isSameMoment(as: $0) == true }) ?? true else {
                return "its backing file \(lower) is a copy of another cut now"
            }
            (path, record, header) = (lower, below, Self.header(descriptor))
        }
        return "its chain has more than \(depthMax) files"
    }

    /// A copy that lies on the file at `path`, among those in its directory; nil when none does.
    static func overlay(on path: String) -> String? {
        for name in SystemFile.names(in: directory(of: path) + "/") {
            guard name.hasSuffix(CopyRequest.qcowSuffix) else { continue }
            let other = "\(directory(of: path))/\(name)"
            let descriptor = open(other, O_RDONLY | O_CLOEXEC)
            guard descriptor >= 0 else { continue }
            defer { close(descriptor) }
            if let onto = header(descriptor)?.onto, resolve(onto, from: other) == path {
                return other
            }
        }
        return nil
    }

    /// The copies that one lies on, from the upper to the lowest.
    package static func lowers(of path: String) throws(CopyError) -> [String] {
        var lowers: [String] = []
        var path = path
        while lowers.count < depthMax,
            case .record(let record) = try CopyRecordFile(besideTarget: path).load(),
            let onto = record.onto
        {
            path = resolve(onto, from: path)
            lowers.append(path)
        }
        return lowers
    }
}
