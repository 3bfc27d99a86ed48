import Foundation
import Glibc
import TestSupport
import Testing

/// Who uses a block device, and what that keeps from happening.
@Suite(.serialized, .needsBlockDevices)
struct `Users of block devices` {
    private let harness: BlockHarness
    private let origin: TestOrigin
    private let block: String

    init() throws {
        origin = try TestOrigin(.sparseFile, byteCount: Filesystem.byteCount)
        harness = try BlockHarness(attaching: ["disk": origin.path])
        block = try harness.attachBlock("disk")
    }

    /// Expects that nothing takes the device away, and that each refusal names the user.
    private func expectRefusals(_ user: String) throws {
        for words in [["block", "detach", block], ["device", "detach", "disk", "--force"]] {
            let outcome = try Command.run(
                TestService.binary, words + ["--control", harness.service.controlPath])
            #expect(outcome.status == 4)
            #expect(outcome.output.isEmpty)
            #expect(outcome.diagnostics.contains(user), "\(words): \(outcome.diagnostics)")
        }
        let list = try harness.command("block", "list")
        #expect(list.contains(user.prefix(20)), "\(list)")
    }

    @Test func `a mount is named, in another namespace of mounts too`() throws {
        try Filesystem.ext4.make(on: block)
        let folder = try TemporaryDirectory()
        let child = try ChildProcess(
            inMountNamespace: "mount \(block) \(folder.root) && echo mounted && read line")
        #expect(try child.readLine(deadline: 60) == "mounted")
        try expectRefusals("mounted at \(folder.root)")
        child.closeInput()
        try child.wait(deadline: 60)
        try harness.command("block", "detach", block)
    }

    @Test func `another loop device is named`() throws {
        let above = try Command.check("losetup", ["--find", "--show", block])
            .trimmingCharacters(in: .newlines)
        let ticket = ExitCleanup.shared.register("losetup -d \(above)")
        try expectRefusals("under the loop device \(above)")
        try Command.check("losetup", ["-d", above])
        ExitCleanup.shared.withdraw(ticket)
        try harness.command("block", "detach", block)
    }

    @Test(.enabled(if: Command.exists("dmsetup"), "needs dmsetup"))
    func `what the device mapper has built on it is named`() throws {
        let name = "stillpoint-test-\(getpid())"
        let made = try Command.run(
            "dmsetup", ["create", name, "--table", "0 2048 linear \(block) 0"])
        guard made.status == 0 else {
            return print("skipped: the device mapper does not work here: \(made.diagnostics)")
        }
        let ticket = ExitCleanup.shared.register("dmsetup remove \(name)")
        try expectRefusals("held by /dev/mapper/\(name)")
        try Command.check("dmsetup", ["remove", name])
        ExitCleanup.shared.withdraw(ticket)
        try harness.command("block", "detach", block)
    }

    @Test func `a mounted image keeps its snapshot from being destroyed`() throws {
        try Filesystem.ext4.make(on: block)
        try harness.command(
            "snapshot", "create", "--device", "disk", "--name", "s", "--storage", "memory:64M",
            "--freeze", "none")
        let image = try harness.attachBlock("disk@s")
        let mount = try Mount(image)
        let outcome = try harness.outcome("snapshot", "destroy", "s")
        #expect(outcome.status == 4)
        #expect(outcome.diagnostics.contains("mounted at \(mount.path)"), "\(outcome.diagnostics)")
        let device = try harness.outcome("device", "detach", "disk", "--force")
        #expect(device.status == 4)
        #expect(device.diagnostics.contains(mount.path), "\(device.diagnostics)")
        #expect(try harness.command("snapshot", "list", "--json").contains("\"held\""))
        try harness.command("snapshot", "destroy", "s", "--force-lose-writes")
        try mount.unmount(deadline: 60)
    }

    @Test func `a name that another service has is refused`() throws {
        let another = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let other = try TestService(
            attaching: ["disk": another.path],
            environment: ["STILLPOINT_BLOCK_LINKS": harness.service.directory.path("dev")])
        let outcome = try Command.run(
            TestService.binary, ["block", "attach", "disk", "--control", other.controlPath])
        #expect(outcome.status == 4)
        #expect(outcome.diagnostics.contains("is taken"), "\(outcome.diagnostics)")
        #expect(outcome.diagnostics.contains(block), "\(outcome.diagnostics)")
        // A device that waits for its service, and that nobody uses, has no claim to it.
        try harness.service.process.killAndWait()
        let node = try Command.check(
            TestService.binary, ["block", "attach", "disk", "--control", other.controlPath])
        #expect(node == harness.service.directory.path("dev/disk") + "\n")
        let target = try FileManager.default.destinationOfSymbolicLink(
            atPath: harness.service.directory.path("dev/disk"))
        #expect(target != block)
        try Command.check(
            TestService.binary, ["block", "detach", "disk", "--control", other.controlPath])
    }

    @Test func `partitions have names of their own`() throws {
        try harness.command("block", "detach", block)
        try Command.check(
            "sh", ["-c", "printf 'label: gpt\\n,64M\\n,64M\\n' | sfdisk -q \(origin.path)"])
        let node = try harness.attachBlock("disk", "--partitions")
        for number in 1...2 {
            let link = harness.service.directory.path("dev/disk\(number)")
            let target = try FileManager.default.destinationOfSymbolicLink(atPath: link)
            #expect(target == "\(node)p\(number)")
        }
        try harness.command("block", "detach", harness.service.directory.path("dev/disk"))
        #expect(
            try FileManager.default.contentsOfDirectory(
                atPath: harness.service.directory.path("dev")) == [])
    }
}
