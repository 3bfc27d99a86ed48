internal import BlockModel
internal import ControlDocuments
internal import CopyPlanning
internal import Glibc
internal import ImageCopy
internal import NBDAccess
internal import RingIO
internal import Synchronization

/// An image written to a pipe, a terminal or whatever else takes bytes one after the other.
struct StreamRun {
    let image: CopySource
    let format: StreamFormat
    /// Nil: everything.
    let changes: RangeSpool?

    /// Whether a target takes a stream: standard output, and what is neither file, directory nor
    /// block device.
    static func takesStream(_ target: String) -> Bool {
        if target == "-" || target == "/dev/stdout" { return true }
        var facts = stat()
        guard stat(target, &facts) == 0 else { return false }
        return ![S_IFREG, S_IFBLK, S_IFDIR].contains(facts.st_mode & S_IFMT)
    }

    /// Writes the stream; returns what was done.
    func perform(to target: String) async throws -> CopyWork {
        let isOutput = target == "-" || target == "/dev/stdout"
        let descriptor = isOutput ? STDOUT_FILENO : open(target, O_WRONLY | O_CLOEXEC | O_NOCTTY)
        guard descriptor >= 0 else {
            throw ControlError(.failed, "target \(target): \(String(cString: strerror(errno)))")
        }
        defer { if !isOutput { close(descriptor) } }
        if isOutput, isatty(STDOUT_FILENO) == 1 {
            throw ControlError(
                .invalid,
                "standard output is a terminal; redirect it to a file or a pipe")
        }
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: 1)
        } catch { throw ControlError(.failed, "the copy cannot start: \(error)") }
        defer { pool.close() }
        let whole = ByteRange(offset: 0, length: image.cut.size)
        let work = changes.map { CopyWork($0) } ?? CopyWork(wholeImage: image.cut.size)
        let sink: StreamSink
        do throws(CopyError) {
            var ranges = changes
            if ranges == nil { ranges = try RangeSpool([whole]) }
            sink = try StreamSink(to: descriptor, format, ranges: ranges ?? .none)
        } catch { throw ControlError(error) }
        let outcome = await pool.run { () -> Result<Void, CopyError> in
            switch image.connect(1) {
            case .failure(let error):
                return .failure(
                    CopyError(.unreadable, "it cannot be opened over NBD (\(error))"))
            case .success(let workers):
                do throws(CopyError) {
                    try sink.begin(size: image.cut.size)
                    workers[0].work(work, into: sink, isFresh: false)
                    try work.check()
                    try sink.end()
                    return .success(())
                } catch { return .failure(error) }
            }
        }
        switch outcome {
        case nil: throw ControlError(.failed, "the copy cannot start")
        case .success: break
        case .failure(let error):
            if error.code == .unreadable { try await image.checkIsHeld() }
            throw ControlError(.failed, "\(image.export): \(error.message)")
        }
        // The connection may be to another snapshot of that name only if this one is gone.
        try await image.checkIsHeld()
        return work
    }
}
