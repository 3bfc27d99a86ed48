import Foundation
import TestSupport
import Testing

/// A control group with a limit of memory, removed when the object goes.
private final class LimitedGroup: Sendable {
    let processList: String
    private let path: String

    /// Where groups with a limit of memory can be made, and what the limit's file is called.
    static let place: (folder: String, limit: String)? = {
        let unified = "/sys/fs/cgroup"
        let controllers = try? String(
            contentsOfFile: unified + "/cgroup.subtree_control", encoding: .utf8)
        if isRoot, controllers?.contains("memory") ?? false { return (unified, "memory.max") }
        let first = unified + "/memory"
        let limit = "memory.limit_in_bytes"
        let isFirst = FileManager.default.fileExists(atPath: first + "/" + limit)
        return isRoot && isFirst ? (first, limit) : nil
    }()

    init(byteCount: Int) throws {
        guard let place = Self.place else { throw TestFailure("no control groups") }
        path = place.folder + "/stillpoint-test-\(UUID().uuidString)"
        processList = path + "/cgroup.procs"
        try FileManager.default.createDirectory(
            atPath: path, withIntermediateDirectories: false)
        try Command.check("sh", ["-c", "echo \(byteCount) > \(path)/\(place.limit)"])
    }

    /// Brings a process into the group.
    func add(_ processID: pid_t) throws {
        try Command.check("sh", ["-c", "echo \(processID) > \(processList)"])
    }

    deinit {
        // Refused while a process is in it; the group is empty then, but for that process.
        rmdir(path)
    }
}

/// Block devices when memory is short.
@Suite(.needsBlockDevices)
struct `Block devices when memory is short` {
    @Test(
        .enabled(
            if: LimitedGroup.place != nil, "no control groups with a limit of memory here"))
    func `four times a limit of memory is written`() throws {
        let limit = 192 * mebibyte
        let group = try LimitedGroup(byteCount: limit)
        let origin = try TestOrigin(.sparseFile, byteCount: 6 * limit)
        let harness = try BlockHarness(attaching: ["disk": origin.path])
        let block = try harness.attachBlock("disk")
        try Filesystem.ext4.make(on: block)
        let mount = try Mount(block)
        // Where loops may allocate without waiting for I/O, the service shares the writer's limit.
        let status = try harness.command("status", "--json")
        let sharesLimit = !status.contains("\"io_flusher\" : false")
        print(
            sharesLimit
                ? "writer and service share the limit"
                : "PR_SET_IO_FLUSHER is refused here (CAP_SYS_RESOURCE): only the writer is limited"
        )
        if sharesLimit { try group.add(harness.service.process.processID) }
        let file = mount.path + "/file"
        try Command.check(
            "sh",
            [
                "-c",
                "echo $$ > \(group.processList) && exec dd if=/dev/zero of=\(file) bs=1M "
                    + "count=\(4 * limit / mebibyte) conv=fsync",
            ], deadline: 300)
        try mount.unmount()
        try Filesystem.ext4.check(block)
        try harness.command("block", "detach", block)
        #expect(try harness.service.stop() == .exited(0))
    }
}
