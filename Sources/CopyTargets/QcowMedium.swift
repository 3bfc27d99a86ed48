internal import BlockModel
internal import CLinux
internal import CopyPlanning
internal import Glibc
internal import Synchronization

// A copy in a qcow2 file, which qemu-nbd writes.
//
// Invariants
// - A complete copy is never written to again: others may lie on it. What changed goes into a new
//   file that lies on the former one.
// - An overlay that was not finished is made again. So is a full copy of which nothing is known to
//   be there; another one continues where it was.
// - How the file stands is looked at when qemu-nbd has ended.

/// A qcow2 file; see the head of this file. Everything blocks.
final class QcowMedium: CopyMedium {
    private let target: CopyTarget
    private let onto: String?
    /// While it is written to.
    private let server = Mutex<QEMUServer?>(nil)

    init(_ target: CopyTarget, onto: String?) throws(CopyError) {
        self.target = target
        self.onto = onto
        guard !target.isBlockDevice else {
            throw CopyError(
                .unsuitable, "\(target.path) is a block device; name a file for a qcow2 copy")
        }
        let holds = try target.file().size
        guard holds == 0 || QcowChain.header(target.descriptor) != nil else {
            throw CopyError(
                .busy,
                "target \(target.path) exists and is no qcow2 file; name another target, or remove "
                    + "it")
        }
    }

    var path: String { target.path }
    var isNew: Bool { target.isNew }
    var beginsFresh: Bool { true }
    var canGrow: Bool { true }
    var keepsVersions: Bool { false }
    var syncsWhileWriting: Bool { true }

    func file() throws(CopyError) -> CopyRecord.File {
        try QcowChain.file(target.descriptor, path)
    }

    func content() -> String? { nil }

    func holds(
        _ record: CopyRecord, except changes: RangeSpool?
    ) throws(CopyError) -> Bool? {
        // A complete file is recognised by its change time; an overlay is made again.
        guard record.state == .running, onto == nil, let samples = record.samples,
            !(record.done ?? []).isEmpty
        else { return nil }
        do throws(CopyError) {
            let reader = try NBDBytes(server: try QEMUServer.serve(path, isReadOnly: true), path)
            return try CopySamples.match(samples, of: reader)
        } catch {
            // Killed at the wrong moment, the file may be unreadable: the copy starts over.
            if error.code == .busy { throw error }
            return false
        }
    }

    func samples(
        within ranges: [ByteRange]?, written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample]? {
        guard let server = server.withLock({ $0 }) else {
            // It has ended: the time of the last change tells.
            return nil
        }
        return try CopySamples.taken(
            of: try NBDBytes(server: server, path), within: ranges, written: written)
    }

    func prepare(_ size: UInt64, for plan: CopyPlan) throws(CopyError) {
        guard size % 512 == 0 else {
            throw CopyError(
                .unsuitable,
                "an image of \(size) bytes is no whole number of sectors, which a qcow2 file has; "
                    + "name another target")
        }
        switch plan {
        case .nothing: return
        case .full(let full) where !full.done.isEmpty:
            // What was allocated and not used when it was killed is given back.
            try HelperProcess.run(
                ["qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", "--", path],
                doing: "target \(path) cannot be continued")
        case .full: try make([], size)
        case .increment:
            guard let onto else {
                preconditionFailure("what changed goes into a file that lies on another one")
            }
            let reference = try QcowChain.reference(to: onto, from: path)
            try make(["-b", reference, "-F", "qcow2"], size)
        }
        let started = try QEMUServer.serve(path, isReadOnly: false)
        guard started.size == size else {
            throw CopyError(
                .failed, "qemu-nbd shows \(started.size) bytes of \(path), and not \(size)")
        }
        server.withLock { $0 = started }
    }

    private func make(_ options: [String], _ size: UInt64) throws(CopyError) {
        try target.empty()
        try target.nameIsNew()
        try HelperProcess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2"] + options + ["--", path, "\(size)"],
            doing: "target \(path) cannot be made")
    }

    func sinks(_ count: Int) throws(CopyError) -> [any CopySink] {
        guard let server = server.withLock({ $0 }) else {
            preconditionFailure("a target is written to after it was prepared")
        }
        return try (0..<count).map { _ throws(CopyError) in
            try NBDSink(server.address, export: "", name: path)
        }
    }

    func sync() throws(CopyError) { try server.withLock({ $0 })?.flush() }

    func settle() throws(CopyError) {
        let ended = server.withLock { server in
            defer { server = nil }
            return server
        }
        if let ended {
            let status = ended.end()
            guard status == 0 else {
                throw CopyError(
                    .failed,
                    "qemu-nbd ended with status \(status) when it closed \(path); run the same "
                        + "command again")
            }
        }
        try target.sync()
        target.settle()
    }

    func complete(_ cut: CopyCut) throws(CopyError) {
        let header = QcowChain.header(target.descriptor)
        guard header?.size == cut.size else {
            throw CopyError(.failed, "\(path) is not the file that was written; copy again")
        }
    }

    func empty() throws(CopyError) { try target.empty() }

    func withdraw() { target.withdraw() }
}
