internal import Glibc
package import RingIO

// What may wait for our own FUSE, and therefore runs in a process of its own: see `ErrandProcess`.

/// A call about a block device that may wait for the service itself.
package enum BlockErrand: Equatable, Sendable {
    /// Sets a free loop device up; answered with its path and number.
    case configure(LoopNodeRequest)
    /// Writes back and takes a loop device over `file` away, as the next two; answered with the
    /// errno value of the write-back.
    case detach(String, file: String)
    /// Takes a loop device away now, or as soon as its users have left.
    case abandon(String, file: String)
    /// A loop device takes over the size of its file.
    case updateSize(String, file: String)
    /// Takes a mount away.
    case unmount(String)
    /// Writes back what filesystems on these block devices have in memory.
    case writeBack([UInt64])
    /// Takes away what a dead service left under a directory; answered with what was found.
    case removeStale(String, keeping: [String])

    /// The first argument of all of them.
    package static let command = "block"

    /// The arguments behind `command`.
    package var words: [String] {
        switch self {
        case .configure(let request):
            [
                "configure", request.file, request.name, "\(request.sectorBytes)",
                "\(request.isReadOnly)", "\(request.scansPartitions)",
            ]
        case .detach(let path, let file): ["detach", path, file]
        case .abandon(let path, let file): ["abandon", path, file]
        case .updateSize(let path, let file): ["update-size", path, file]
        case .unmount(let directory): ["unmount", directory]
        case .writeBack(let numbers): ["write-back"] + numbers.map(String.init)
        case .removeStale(let directory, let kept): ["remove-stale", directory] + kept
        }
    }

    /// Reads the arguments; nil when they are not one of these.
    package init?(_ words: [String]) {
        let rest = Array(words.dropFirst())
        switch (words.first, rest.count) {
        case ("configure", 5):
            guard let sectorBytes = UInt32(rest[2]), let isReadOnly = Bool(rest[3]),
                let scansPartitions = Bool(rest[4])
            else { return nil }
            self = .configure(
                LoopNodeRequest(
                    file: rest[0], name: rest[1], sectorBytes: sectorBytes,
                    isReadOnly: isReadOnly, scansPartitions: scansPartitions))
        case ("detach", 2): self = .detach(rest[0], file: rest[1])
        case ("abandon", 2): self = .abandon(rest[0], file: rest[1])
        case ("update-size", 2): self = .updateSize(rest[0], file: rest[1])
        case ("unmount", 1): self = .unmount(rest[0])
        case ("write-back", _): self = .writeBack(rest.compactMap { UInt64($0) })
        case ("remove-stale", 1...):
            self = .removeStale(rest[0], keeping: Array(rest.dropFirst()))
        case (_, _): return nil
        }
    }

    // MARK: In the service

    /// Has it done. Blocks.
    func run() throws(BlockExportError) -> [String] {
        switch ErrandProcess.run([Self.command] + words) {
        case .failure(let error): throw BlockExportError(.failed, "\(words[0]): \(error)")
        case .success(let answer):
            let rest = Array(answer.dropFirst())
            switch answer.first {
            case "done": return rest
            case "busy": throw BlockExportError(.busy, rest.first ?? words[0])
            default: throw BlockExportError(.failed, rest.first ?? words[0])
            }
        }
    }

    /// Has it done on a pool.
    package func run(on pool: BlockingPool) async throws(BlockExportError) -> [String] {
        let outcome = await pool.run { () -> Result<[String], BlockExportError> in
            do throws(BlockExportError) { return .success(try run()) } catch {
                return .failure(error)
            }
        }
        guard let outcome else {
            throw BlockExportError(.busy, "too many operations wait; try again")
        }
        return try outcome.get()
    }

    // MARK: In the errand's process

    /// Does it and returns the answer.
    package func perform() -> [String] {
        do throws(BlockExportError) {
            return ["done"] + (try done())
        } catch {
            return [error.kind == .busy ? "busy" : "failed", error.message]
        }
    }

    private func done() throws(BlockExportError) -> [String] {
        switch self {
        case .configure(let request):
            let node = try LoopNode.configure(request)
            // Nobody would know of it.
            guard ErrandProcess.hasService else {
                _ = LoopNode.abandon(node.path, over: LoopBackingFile(at: request.file))
                return []
            }
            return [node.path, "\(node.deviceNumber)"]
        case .detach(let path, let file):
            return ["\(try LoopNode.detach(path, over: LoopBackingFile(at: file)))"]
        case .abandon(let path, let file):
            _ = LoopNode.abandon(path, over: LoopBackingFile(at: file))
            return []
        case .updateSize(let path, let file):
            let isTaken = LoopNode.updateSize(path, over: LoopBackingFile(at: file))
            return [isTaken ? "taken" : "refused"]
        case .unmount(let directory):
            FuseMount.unmount(directory)
            return []
        case .writeBack(let numbers):
            MountedFilesystems.writeBack(on: Set(numbers))
            return []
        case .removeStale(let directory, let kept):
            return StaleBlockDevices.remove(under: directory, keeping: Set(kept))
        }
    }
}
