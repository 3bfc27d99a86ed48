package import BlockModel
internal import ControlDocuments
internal import DataPlane
internal import FreezePlanning
internal import Glibc
internal import Host
internal import LiveTracking
internal import Origins

/// How a live device may be named: by its block device, by where it is mounted, or by a tag of its
/// filesystem or partition.
enum LiveOrigin {
    /// The block device that is meant. Blocks.
    static func blockDevice(for text: String) throws(ControlError) -> String {
        if LiveTag.isOne(text) { return try tagged(text) }
        var facts = stat()
        let path: String
        do throws(HostError) { path = try resolvedPath(text) } catch {
            throw ControlError(
                .notFound,
                "\(error); name a block device, the mount point of a filesystem on one, or UUID=..."
            )
        }
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFDIR else { return path }
        return try mounted(at: path)
    }

    private static func tagged(_ text: String) throws(ControlError) -> String {
        let parts = text.split(separator: "=", maxSplits: 1)
        guard parts.count == 2, !parts[1].contains("/"), let folder = LiveTag.folder(of: parts[0])
        else {
            throw ControlError(.invalid, "\(text) names nothing; give a value after the =")
        }
        let link = "/dev/disk/\(folder)/\(parts[1])"
        do throws(HostError) { return try resolvedPath(link) } catch {
            throw ControlError(
                .notFound, "\(text): \(error); `lsblk -o NAME,UUID,LABEL` lists those there are")
        }
    }

    private static func mounted(at path: String) throws(ControlError) -> String {
        let filesystems: [MountedFilesystem]
        do throws(AttachError) { filesystems = try MountSurvey.filesystems() } catch {
            throw ControlError(error)
        }
        let bytes = Array(path.utf8)
        let there = filesystems.filter { $0.mounts.contains { $0.path == bytes } }
        guard
            let newest = there.max(by: { newestPosition($0, bytes) < newestPosition($1, bytes) })
        else {
            throw ControlError(
                .notFound,
                "\(path) is a directory, and nothing is mounted there; name a mount point, or the "
                    + "block device itself")
        }
        guard newest.device.major != 0 else {
            throw ControlError(
                .unsuitable,
                "the filesystem at \(path) is not on one block device alone; name the block devices "
                    + "that it stands on, each as a live device")
        }
        let link = "/dev/block/\(newest.device)"
        if let found = try? resolvedPath(link) { return found }  // Not every /dev has these links.
        guard let name = nodeName(of: newest.device) else {
            throw ControlError(
                .notFound, "the block device \(newest.device) under \(path) has no node in /dev")
        }
        return name
    }

    private static func newestPosition(_ filesystem: MountedFilesystem, _ path: [UInt8]) -> Int {
        filesystem.mounts.filter { $0.path == path }.map(\.position).max() ?? 0
    }

    private static func nodeName(of number: DeviceNumber) -> String? {
        guard let text = try? readWhole("/sys/dev/block/\(number)/uevent", byteCountMax: 65536)
        else { return nil }  // Gone meanwhile.
        let lines = String(decoding: text, as: UTF8.self).split(separator: "\n")
        return lines.first { $0.hasPrefix("DEVNAME=") }.map { "/dev/" + $0.dropFirst(8) }
    }
}

extension LivePlace {
    /// Where the block device of that path lies; nil when it is not one.
    fileprivate init?(path: String) {
        var facts = stat()
        guard stat(path, &facts) == 0, facts.st_mode & S_IFMT == S_IFBLK else { return nil }
        self.init(of: DeviceNumber(statNumber: UInt64(facts.st_rdev)))
    }
}

extension DeviceRegistry {
    /// The path of the origin, symbolic links resolved.
    func originPath(of request: AttachRequest) async throws -> String {
        guard request.isLive else { return await resolved(request.path) }
        let text = request.path
        let outcome = await blocking.run { () -> Result<String, ControlError> in
            do throws(ControlError) { return .success(try LiveOrigin.blockDevice(for: text)) } catch
            {
                return .failure(error)
            }
        }
        guard let outcome else { throw ControlError.tooManyOperations }
        return try outcome.get()
    }

    /// A device is served or live, never both; nor is a disk live while a partition of it is
    /// attached, or the other way round.
    func checkOneMode(_ path: String, of request: AttachRequest) async throws {
        guard request.isLive || entries.values.contains(where: { $0.device.isLive }) else { return }
        let wanted = await blocking.run { LivePlace(path: path) }
        guard let wanted else { throw ControlError.tooManyOperations }
        guard let wanted else { return }
        for (name, entry) in entries.sorted(by: { $0.key < $1.key })
        where request.isLive || entry.device.isLive {
            let other = entry.device.facts.path
            guard let place = await blocking.run({ LivePlace(path: other) }), let place,
                place.diskNumber == wanted.diskNumber,
                place.number == wanted.number || !place.isPartition || !wanted.isPartition
            else { continue }
            throw ControlError(
                .busy,
                "origin \(path) is, or shares its disk with, \(entry.device.facts.path), which is "
                    + "attached as \(entry.device.isLive ? "live" : "served") device \(name); a disk "
                    + "is served or live, and as a whole or by its partitions; detach one first")
        }
    }

    /// Ends what is left of an earlier service's live devices and was not attached again.
    package func forgetUnusedMarks() async {
        let live = places.live
        // Too many operations: the next start does it.
        _ = await blocking.run { live.forgetUnused() }
    }

    /// How often the marks of live devices are taken without a request: the longest time until
    /// people hear that a mark was missed.
    private static let watchInterval = Duration.seconds(10)

    /// Takes the marks of live devices from time to time, until the task is cancelled.
    package func watchLiveDevices() async {
        while !Task.isCancelled {
            // Cancelled: then the service ends.
            try? await Task.sleep(for: Self.watchInterval)
            for (name, entry) in entries where entry.device.isLive && !isStopping {
                // Being detached: nothing is to be taken any more.
                try? await pinning([name]) { devices in _ = await devices[0].takeMarks() }
            }
        }
    }

    /// Numbers of the live devices of the service: filesystems on them are frozen for cuts.
    package func liveBlockDevices() -> [ObjectName: Set<DeviceNumber>] {
        entries.reduce(into: [:]) { found, entry in
            if let number = entry.value.device.liveNumber { found[entry.key] = [number] }
        }
    }
}
