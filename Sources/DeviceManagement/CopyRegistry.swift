internal import BlockModel
package import ControlDocuments
internal import FoundationEssentials
internal import Host
package import Logging
package import RingIO
package import ServiceState

// The copies that programs say they make: those under way, and the last one of each device.
//
// Invariants
// - What is recorded is bounded: `runningMax` copies under way, one that has ended for each device,
//   texts of `textByteCountMax` bytes.
// - The last copy of a device outlives the service (`copies.json`): an alert that waits for the
//   next one must not forget it at an upgrade. It is reported again when it could not be recorded,
//   so a failure to write is logged and nothing more.

/// The copies that programs say they make; see the head of this file.
package actor CopyRegistry {
    private let devices: DeviceRegistry
    private let state: StateDirectory
    private let blocking: BlockingPool
    private let logger: Logger
    private var running: [String: CopyJobDocument] = [:]
    private var ended: [String: CopyJobDocument] = [:]

    /// Most copies under way.
    static let runningMax = 256
    /// After so much silence a program is gone.
    static let silenceSecondsMax: TimeInterval = 60
    private static let textByteCountMax = 4096
    private static let fileName = "copies.json"

    private struct Contents: Codable {
        var version: Int
        var copies: [CopyJobDocument]
    }

    package init(
        devices: DeviceRegistry, state: StateDirectory, remembered: [CopyJobDocument],
        blocking: BlockingPool, logger: Logger
    ) {
        self.devices = devices
        self.state = state
        self.blocking = blocking
        self.logger = logger
        for copy in remembered { ended[copy.device] = copy }
    }

    /// Reads what is remembered in a state directory. Blocks.
    package static func load(_ directory: String, logger: Logger) -> [CopyJobDocument] {
        let file = directory + "/" + fileName
        do {
            guard let bytes = try readWhole(file, byteCountMax: StateDirectory.fileByteCountMax)
            else { return [] }
            return try DocumentCoding.decoder().decode(Contents.self, from: Data(bytes)).copies
        } catch {
            // Nothing depends on it but figures.
            logger.error("\(file) cannot be read, so the last copies are not known: \(error)")
            return []
        }
    }

    /// A program begins a copy.
    package func begin(_ request: CopyBeginDocument) async throws -> CopyJobDocument {
        for text in [request.snapshot, request.target, request.since ?? ""] { try Self.check(text) }
        _ = try await devices.show(request.device)
        endSilent()
        guard running.count < Self.runningMax else {
            throw ControlError(
                .limitReached,
                "\(Self.runningMax) copies are under way, the most that the service keeps account of"
            )
        }
        let now = Date()
        let copy = CopyJobDocument(
            id: UniqueID.random().description, device: request.device, snapshot: request.snapshot,
            target: request.target, since: request.since, state: "running", bytes: request.bytes,
            copiedBytes: 0, startedAt: now, updatedAt: now, endedAt: nil, error: nil)
        running[copy.id] = copy
        return copy
    }

    /// A program says how far its copy is, or that it has ended.
    package func progress(
        _ id: String, _ progress: CopyProgressDocument
    ) async throws -> CopyJobDocument {
        if let state = progress.state, !["done", "failed", "interrupted"].contains(state) {
            throw ControlError(
                .invalid, "state \"\(state)\": use done, failed or interrupted, or leave it out")
        }
        if let error = progress.error { try Self.check(error) }
        guard var copy = running[id] else {
            throw ControlError(.notFound, "no copy with id \(id) is under way; begin it first")
        }
        copy.copiedBytes = progress.copiedBytes
        copy.updatedAt = Date()
        guard let state = progress.state else {
            running[id] = copy
            return copy
        }
        copy.state = state
        copy.error = progress.error
        copy.endedAt = copy.updatedAt
        running[id] = nil
        ended[copy.device] = copy
        await remember()
        return copy
    }

    /// Those under way, then the last of each device; the newest first.
    package func list() -> [CopyJobDocument] {
        endSilent()
        let newer = { (left: CopyJobDocument, right: CopyJobDocument) in
            (left.startedAt, left.id) > (right.startedAt, right.id)
        }
        return running.values.sorted(by: newer) + ended.values.sorted(by: newer)
    }

    /// The last copy of each device that has ended.
    package func last() -> [CopyJobDocument] {
        endSilent()
        return ended.values.sorted { $0.device < $1.device }
    }

    /// A program that was killed cannot say so.
    private func endSilent() {
        let now = Date()
        for (id, copy) in running
        where now.timeIntervalSince(copy.updatedAt) > Self.silenceSecondsMax {
            var copy = copy
            copy.state = "lost"
            copy.endedAt = copy.updatedAt
            running[id] = nil
            ended[copy.device] = copy
        }
    }

    private func remember() async {
        do {
            let contents = Contents(
                version: 1, copies: ended.values.sorted { $0.device < $1.device })
            try await state.replace(
                Self.fileName, with: [UInt8](try DocumentCoding.encoder().encode(contents)),
                on: blocking)
        } catch { logger.error("the last copies could not be recorded: \(error)") }
    }

    private static func check(_ text: String) throws(ControlError) {
        guard text.utf8.count <= textByteCountMax else {
            throw ControlError(
                .invalid, "a text of \(text.utf8.count) bytes: \(textByteCountMax) are the most")
        }
    }
}
