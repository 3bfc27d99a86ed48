package import ClientSupport
package import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host
internal import RingIO

// A snapshot for the time of one command, destroyed in every case: also when the command is killed.
// A helper process (`stillpoint snapshot-holder`) makes the snapshot, and what is wanted on top of
// it, and takes all of it down when the socket to the command closes, for whatever reason.
//
//   command ----- HolderRequest -----> holder        (one JSON document on a line each)
//           <---- HolderReply ----
//           ----- "done", or nothing, and the end
//           <---- what could not be taken down, and the end

/// What a holder is to make.
struct HolderRequest: Codable, Sendable {
    /// Control socket of the service.
    var control: String
    var devices: [String]
    /// Name of the snapshot.
    var name: String?
    /// Make block devices of the images.
    var attaches = false
    /// Mount the block devices, read-only.
    var mounts = false
}

/// What a holder has made, or why it has not.
struct HolderReply: Codable, Sendable {
    var error: ErrorDocument?
    /// The service does not answer.
    var unreachable: String?
    var snapshot: SnapshotDocument?
    var images: [Place] = []
    var mounts: [Place] = []

    /// Where the image of a device is.
    struct Place: Codable, Sendable {
        var device: String
        var path: String
    }
}

/// What a command holds while it runs; see the head of this file.
package struct HeldImages: Sendable {
    /// The snapshot, as it was when all was made.
    package let snapshot: SnapshotDocument
    let images: [HolderReply.Place]
    let mounts: [HolderReply.Place]
    private let line: HelperSocket
    private let process: Int32

    /// Most bytes of an answer.
    private static let answerByteCountMax = 4 << 20

    /// A snapshot of these devices; nil when there are none.
    package static func hold(
        _ devices: [String], named name: String?, with client: ControlClient
    ) async throws -> HeldImages? {
        guard !devices.isEmpty else { return nil }
        return try await hold(
            HolderRequest(control: client.path, devices: devices, name: name))
    }

    /// Has all of it made.
    static func hold(_ order: HolderRequest) async throws -> HeldImages {
        var ends: [Int32] = [-1, -1]
        let kind = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        guard socketpair(AF_UNIX, kind, 0, &ends) == 0 else {
            throw ControlError(.failed, "socketpair: \(String(cString: strerror(errno)))")
        }
        defer { close(ends[1]) }
        let line = HelperSocket(owning: ends[0])
        let started: pid_t
        do throws(HostError) {
            started = try ProgramStart.ownProgram(["snapshot-holder"], socket: ends[1]).run()
        } catch {
            throw ControlError(
                .failed,
                "the holder cannot be started: \(SystemFile.errorText(error.errnoValue))")
        }
        let pool: BlockingPool
        do throws(RingError) {
            pool = try BlockingPool(threadCount: 1)
        } catch { throw ControlError(.failed, "the snapshot cannot be made: \(error)") }
        defer { pool.close() }
        let sent = try DocumentCoding.encoder().encode(order)
        // The holder's end of the pair is closed here before its answer is waited for, so that its
        // death is seen.
        close(ends[1])
        ends[1] = -1
        let bytes = await pool.run {
            line.send(Array(sent) + [UInt8(ascii: "\n")])
            return line.receive(byteCountMax: answerByteCountMax)
        }
        guard let bytes, let bytes else {
            throw ControlError(.failed, "the holder of the snapshot has ended; try again")
        }
        let answer = try DocumentCoding.decoder().decode(HolderReply.self, from: Data(bytes))
        if let error = answer.error {
            Self.wait(for: started)
            throw error.controlError
        }
        if let message = answer.unreachable {
            Self.wait(for: started)
            throw Unreachable(message: message)
        }
        guard let snapshot = answer.snapshot else {
            throw ControlError(.failed, "the holder of the snapshot made none")
        }
        return HeldImages(
            snapshot: snapshot, images: answer.images, mounts: answer.mounts, line: line,
            process: started)
    }

    /// Has all of it taken down; returns what could not be, for people.
    package func release() -> String? {
        line.send(Array("done\n".utf8))
        line.endSending()
        let left = line.receive(byteCountMax: Self.answerByteCountMax)
        Self.wait(for: process)
        guard let left else { return "the holder of the snapshot has ended before its time" }
        return left.isEmpty ? nil : String(decoding: left, as: UTF8.self)
    }

    private static func wait(for process: Int32) {
        var status: Int32 = 0
        while waitpid(process, &status, 0) < 0, errno == EINTR {}
    }
}
