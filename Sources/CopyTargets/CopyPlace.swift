package import CopyPlanning
internal import Glibc

// What a target is, told by its name:
//
//   nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbds://...   an NBD server's export
//   FILE.qcow2                                                             a file, through QEMU
//   rbd:POOL/IMAGE                                                         an RBD image
//   anything else                                                          a file or block device

/// Where a copy is; see the head of this file.
package enum CopyPlace: Sendable {
    case file(String)
    case qcow(String)
    case nbd(NBDPlace)
    case rbd(RBDPlace)

    /// What the name of a copy ends with until it replaces the complete one.
    package static let besideSuffix = ".unfinished"

    package init(_ name: String) throws(CopyError) {
        if let place = try NBDPlace(parsing: name) {
            self = .nbd(place)
        } else if let place = try RBDPlace(parsing: name) {
            self = .rbd(place)
        } else {
            self = name.hasSuffix(CopyRequest.qcowSuffix) ? .qcow(name) : .file(name)
        }
    }

    /// The name is not a local path.
    package static func isRemote(_ name: String) -> Bool {
        NBDPlace.schemes.contains { name.hasPrefix($0 + "://") } || name.hasPrefix(RBDPlace.prefix)
    }

    /// Where a new copy is made that is to replace this one. Only files are replaced like this.
    package var beside: CopyPlace {
        switch self {
        case .file(let path): .file(path + Self.besideSuffix)
        case .qcow(let path): .qcow(path + Self.besideSuffix)
        case .nbd, .rbd: preconditionFailure("there is no place beside \(self)")
        }
    }

    /// Throws when other files depend on what it holds.
    package func checkNothingLiesOnIt() throws(CopyError) {
        guard case .qcow(let path) = self, let other = QcowChain.overlay(on: path) else { return }
        throw CopyError(
            .busy,
            "target \(path) is the backing file of the copy \(other), which would be lost with it; "
                + "name another target")
    }

    /// Opens what is there, or makes it when `creates`. Blocks.
    package func open(
        creates: Bool, isForced: Bool, _ request: CopyRequest, _ options: CopyOptions
    ) throws(CopyError) -> any CopyMedium {
        if options.onto != nil {
            guard case .qcow = self else {
                throw CopyError(
                    .unsuitable, "--onto needs a qcow2 file as the target; name a FILE.qcow2")
            }
        }
        switch self {
        case .file(let path):
            return try CopyTarget(
                opening: path, creates: creates, surroundings: options.surroundings,
                isForced: isForced)
        case .qcow(let path):
            guard request.since == nil || options.onto != nil else {
                throw CopyError(
                    .busy,
                    "a qcow2 copy is not brought forward in place, because it may be the backing "
                        + "file of others; name a new file, and \(path) with --onto")
            }
            return try QcowMedium(
                CopyTarget(
                    opening: path, creates: creates, surroundings: options.surroundings,
                    isForced: isForced, locksOutQEMU: false), onto: options.onto)
        case .nbd(let place):
            return try NBDMedium(
                place, source: request.device, isForced: isForced, options)
        case .rbd(let place):
            return try RBDMedium(place, creates: creates, cut: request.cut, options)
        }
    }

    /// Where the record of what is there is, or would be.
    package func recordFile(_ options: CopyOptions) throws(CopyError) -> CopyRecordFile? {
        if let named = CopyRecordFile.named(options) { return named }
        switch self {
        case .file(let path):
            var facts = stat()
            guard stat(path, &facts) == 0 else { return nil }
            guard facts.st_mode & S_IFMT == S_IFBLK else {
                return CopyRecordFile(besideTarget: path)
            }
            guard let disk = DiskLook.state(ofPath: path) else { return nil }
            return CopyRecordFile(of: disk.state, size: disk.size, in: options.diskRecords)
        case .qcow(let path): return CopyRecordFile(besideTarget: path)
        case .nbd(let place): return place.recordFile(in: options.diskRecords)
        case .rbd(let place): return try place.recordFile(in: options.diskRecords)
        }
    }
}
