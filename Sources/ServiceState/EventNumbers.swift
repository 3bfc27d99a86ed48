package import ControlDocuments
internal import Host
internal import FoundationEssentials
package import Logging
package import RingIO
internal import Synchronization

// Numbers of events continue across the end of the service, so that a follower knows after a
// restart which ones are new.
//
// Invariants
// - No event is recorded with a number that `events.json` does not cover, unless more than
//   `reserve` events are recorded before one write to the state directory has ended.
// - A clean stop writes the last number that was used; a service that was killed leaves a gap.

/// The numbers of events over all runs of the service; see the head of this file.
package final class EventNumbers: Sendable {
    private struct Contents: Codable {
        var version: Int
        /// No event has a higher number.
        var last: UInt64
    }

    /// The last number of the runs before.
    package let base: UInt64
    private let path: String
    private let covered: Mutex<UInt64>

    /// Numbers that are reserved with one write.
    static let reserve: UInt64 = 1 << 20

    /// Reads what the runs before left in the state directory, and reserves numbers. A service
    /// that cannot do so works all the same, and logs what its followers have to expect. Blocks.
    package init(in directory: String, logger: Logger) {
        path = directory + "/events.json"
        var base: UInt64 = 0
        do {
            base = try Self.last(in: path)
        } catch { logger.error("\(error)") }
        self.base = base
        covered = Mutex(base)
        do throws(ControlError) {
            try write(base + Self.reserve)
        } catch { logger.error("\(error)") }
    }

    private static func last(in path: String) throws -> UInt64 {
        let byteCountMax = StateDirectory.fileByteCountMax
        guard let bytes = try readWhole(path, byteCountMax: byteCountMax) else { return 0 }
        // JavaScript and others read numbers up to 2^53 exactly.
        guard
            let contents = try? DocumentCoding.decoder().decode(Contents.self, from: Data(bytes)),
            contents.version == 1, contents.last < 1 << 53
        else {
            throw ControlError(
                .failed,
                "\(path) is damaged, so events are numbered from 1 on again; followers that ask for "
                    + "those after a higher number are told")
        }
        return contents.last
    }

    /// Reserves more when `number` comes near the end of what is reserved.
    package func cover(
        _ number: UInt64, on blocking: BlockingPool, freezeLock: AsyncReadWriteLock
    ) async throws(ControlError) {
        let isNear = covered.withLock { number + Self.reserve / 2 > $0 }
        guard isNear else { return }
        await freezeLock.lockShared()
        defer { freezeLock.unlock() }
        try await replace(number + Self.reserve, on: blocking)
    }

    /// Records the last number that is or may be used.
    package func replace(_ last: UInt64, on blocking: BlockingPool) async throws(ControlError) {
        let outcome = await blocking.run { () -> Result<Void, ControlError> in
            do throws(ControlError) {
                return .success(try self.write(last))
            } catch { return .failure(error) }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        try outcome.get()
    }

    private func write(_ last: UInt64) throws(ControlError) {
        let contents = Contents(version: 1, last: last)
        do {
            let bytes = [UInt8](try DocumentCoding.encoder(pretty: true).encode(contents))
            try DurableFile.replace(path, with: bytes)
        } catch {
            throw ControlError(
                .failed,
                "the last number of an event could not be recorded (\(error)), so the next run may "
                    + "use numbers again; free some space or repair the state directory")
        }
        covered.withLock { $0 = last }
    }
}
