package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host

/// `snapshot-holder`: the helper of commands that hold a snapshot while they run; see `HeldImages`.
package struct SnapshotHolderCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "snapshot-holder",
        abstract: "A helper of `copy` and `run`; started by them alone.",
        shouldDisplay: false)

    private static let orderByteCountMax = 1 << 20

    package init() {}

    package mutating func run() async throws {
        // It ends when its command has ended, and takes down what it made before that.
        let line = try HelperSocket.ofHelper(
            "holder", startedBy: "`stillpoint copy` and `stillpoint run`")
        guard let bytes = line.receive(byteCountMax: Self.orderByteCountMax),
            let order = try? DocumentCoding.decoder().decode(HolderRequest.self, from: Data(bytes))
        else { throw ControlError(.invalid, "the holder was given no order") }
        var holdings: Holdings
        do throws(Unreachable) {
            holdings = try Holdings(order)
        } catch {
            return line.send(try Self.line(of: HolderReply(unreachable: error.message)))
        }
        var answer: HolderReply
        do {
            answer = try await holdings.make()
        } catch let error as ControlError {
            answer = HolderReply(error: ErrorDocument(error))
        } catch let error as Unreachable {
            answer = HolderReply(unreachable: error.message)
        }
        let isMade = answer.snapshot != nil
        if !isMade, let left = await holdings.takeDown() {
            answer.error?.error.message += "; \(left)"
        }
        line.send(try Self.line(of: answer))
        guard isMade else { return }
        var isDone = false
        while let bytes = line.receive(byteCountMax: 64) {
            if bytes == Array("done".utf8) { isDone = true }
        }
        // Nobody waits for it any more.
        if !isDone { await holdings.endUsers() }
        let left = await holdings.takeDown() ?? ""
        line.send(Array((left + "\n").utf8))
    }

    private static func line(of answer: HolderReply) throws -> [UInt8] {
        [UInt8](try DocumentCoding.encoder().encode(answer)) + [UInt8(ascii: "\n")]
    }
}

/// A snapshot, block devices of its images and their mounts, made in this order and taken down in
/// the opposite one.
struct Holdings {
    private let order: HolderRequest
    private let client: ControlClient
    private var snapshot: SnapshotDocument?
    private var blocks: [HolderReply.Place] = []
    private var mounts: [HolderReply.Place] = []
    private var directory: String?

    /// How often something busy is tried again, and after which time.
    private static let triesMax = 50
    private static let pause = Duration.milliseconds(200)

    init(_ order: HolderRequest) throws(Unreachable) {
        self.order = order
        client = try ControlClient(path: order.control)
    }

    /// Makes all of it; what was made before a failure is taken down by `takeDown`.
    mutating func make() async throws -> HolderReply {
        var document = SnapshotCreateDocument(devices: order.devices)
        document.name = order.name
        _ = try SnapshotRequest(document)
        let made = try await client.call(
            .POST, "/v1/snapshots", body: document, as: SnapshotDocument.self)
        snapshot = made
        if order.attaches || order.mounts {
            for device in order.devices { try await attach(device, made) }
        }
        if order.mounts {
            for block in blocks { try mount(block) }
        }
        return HolderReply(snapshot: made, images: blocks, mounts: mounts)
    }

    private mutating func attach(_ device: String, _ snapshot: SnapshotDocument) async throws {
        // Writable, through the image's overlay: a filesystem's log may have to be replayed.
        let block = try await client.call(
            .POST, "/v1/blocks",
            body: BlockAttachDocument(
                target: "\(device)@\(snapshot.label)", readOnly: !order.mounts, partitions: nil,
                temporary: true),
            as: BlockDocument.self)
        blocks.append(.init(device: device, path: block.node))
    }

    private mutating func mount(_ block: HolderReply.Place) throws {
        let root = try mountRoot()
        let place = "\(root)/\(block.device)"
        guard mkdir(place, 0o700) == 0 else {
            throw ControlError(.failed, "\(place): \(String(cString: strerror(errno)))")
        }
        let probe = ToolProcess.run(["blkid", "-p", "-o", "value", "-s", "TYPE", block.path])
        let type = probe.text.trimmingSpaces
        guard probe.status == 0, !type.isEmpty else {
            throw ControlError(
                .unsuitable,
                "the image of \(block.device) holds no filesystem that can be mounted; without "
                    + "--mount the command gets its block device")
        }
        if type == "btrfs" { try giveNewIdentity(block) }
        // The original may be mounted on this machine, and XFS knows filesystems by their UUID.
        let special = type == "xfs" ? ",nouuid" : ""
        let outcome = ToolProcess.run(
            ["mount", "-t", type, "-o", "ro\(special)", block.path, place])
        guard outcome.status == 0 else {
            rmdir(place)
            throw ControlError(
                .failed, "the image of \(block.device) cannot be mounted: \(outcome.text)")
        }
        mounts.append(.init(device: block.device, path: place))
    }

    /// btrfs takes two filesystems of one UUID for the same and mixes them up.
    private func giveNewIdentity(_ block: HolderReply.Place) throws {
        let outcome = ToolProcess.run(["btrfstune", "-f", "-m", block.path])
        guard outcome.status == 0 else {
            throw ControlError(
                .failed,
                "the btrfs filesystem in the image of \(block.device) cannot be given a UUID of its "
                    + "own, without which it is not safe to mount (btrfstune: \(outcome.text))")
        }
    }

    private mutating func mountRoot() throws -> String {
        if let directory { return directory }
        let parent = Defaults.environment("TMPDIR") ?? "/tmp"
        var template = Array("\(parent)/stillpoint-run-XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else {
            throw ControlError(.failed, "\(parent): \(String(cString: strerror(errno)))")
        }
        let bytes = template.dropLast().map(UInt8.init(bitPattern:))
        let made = String(decoding: bytes, as: UTF8.self)
        directory = made
        return made
    }

    // MARK: Users

    /// An entry of the environment by which processes that use a snapshot's images are known.
    static func mark(_ id: String) -> String { "STILLPOINT_SNAPSHOT_ID=\(id)" }

    /// Ends the processes that were started to use the images, and those that they started.
    func endUsers() async {
        guard let snapshot else { return }
        for (number, tries) in [(SIGTERM, 50), (SIGKILL, 50)] {
            for _ in 0..<tries {
                let users = Self.users(of: snapshot.id)
                if users.isEmpty { return }
                for user in users { kill(user, number) }
                // They are not children of this process: their end is not reported.
                try? await Task.sleep(for: .milliseconds(100))
            }
        }
    }

    /// Processes whose environment has the mark; those that cannot be looked at are others'.
    private static func users(of id: String) -> [pid_t] {
        let mark = Array(mark(id).utf8)
        var users: [pid_t] = []
        for name in SystemFile.names(in: "/proc") {
            guard let process = pid_t(name), process != getpid() else { continue }
            if environment(of: process).split(separator: 0).contains(where: {
                $0.elementsEqual(mark)
            }) {
                users.append(process)
            }
        }
        return users
    }

    private static func environment(of process: pid_t) -> [UInt8] {
        let file = open("/proc/\(process)/environ", O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return [] }
        defer { close(file) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65536)
        while bytes.count < 4 << 20 {
            let count = read(file, &piece, piece.count)
            guard count > 0 else { break }
            bytes.append(contentsOf: piece[..<count])
        }
        return bytes
    }

    // MARK: Taking down

    /// Takes down all of it; returns what could not be, for people.
    mutating func takeDown() async -> String? {
        var left: [String] = []
        for mounted in mounts.reversed() {
            if let reason = await unmount(mounted.path) { left.append(reason) }
            rmdir(mounted.path)
        }
        if let directory { rmdir(directory) }
        for block in blocks.reversed() {
            let name = block.path.split(separator: "/").last.map(String.init) ?? block.path
            if let reason = await delete("/v1/blocks/\(ControlClient.escaped(name))") {
                left.append(reason)
            }
        }
        if let snapshot, let reason = await delete("/v1/snapshots/\(snapshot.id)") {
            left.append(reason)
        }
        return left.isEmpty ? nil : left.joined(separator: "; ")
    }

    private func unmount(_ path: String) async -> String? {
        for attempt in 0..<Self.triesMax {
            if umount2(path, 0) == 0 || errno == EINVAL || errno == ENOENT { return nil }
            // The command has ended and left something behind that sits on it.
            if attempt == Self.triesMax / 5 { await endUsers() }
            // The system has no event for the end of its use.
            try? await Task.sleep(for: Self.pause)
        }
        let reason = String(cString: strerror(errno))
        // Out of everybody's sight at least; it goes with its last user.
        umount2(path, Int32(MNT_DETACH))
        return "\(path) was still in use (\(reason)) and goes with its last user"
    }

    /// Deletes an object of the service; one that is gone is as good.
    private func delete(_ target: String) async -> String? {
        var reason = ""
        for _ in 0..<Self.triesMax {
            do {
                _ = try await client.call(.DELETE, target, as: Ignored.self)
                return nil
            } catch let error as ControlError {
                if error.code == .notFound { return nil }
                reason = error.message
                guard error.code == .busy else { return reason }
            } catch {
                // Without a service nothing of it is left.
                return nil
            }
            try? await Task.sleep(for: Self.pause)
        }
        return reason
    }

    /// An answer whose contents do not matter.
    private struct Ignored: Decodable { init(from decoder: any Decoder) throws {} }
}

extension String {
    /// Without spaces and line ends around it.
    fileprivate var trimmingSpaces: String {
        var text = Substring(self)
        while text.last?.isWhitespace == true { text.removeLast() }
        while text.first?.isWhitespace == true { text.removeFirst() }
        return String(text)
    }
}
