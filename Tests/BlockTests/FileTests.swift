import Foundation
import Glibc
import TestSupport
import Testing

/// The file under a block device, used as a file: what the loop driver does not ask of it.
@Suite(.needsBlockDevices)
struct `The file under a block device` {
    private struct Served {
        let harness: BlockHarness
        let origin: TestOrigin
        let file: String

        init(_ flags: String...) throws {
            origin = try TestOrigin(.sparseFile, byteCount: 16 * mebibyte)
            harness = try BlockHarness(attaching: ["disk": origin.path])
            try Command.check(
                TestService.binary,
                ["block", "attach", "disk"] + flags + ["--control", harness.service.controlPath])
            file = harness.mountDirectory + "/1/disk"
        }
    }

    @Test func `holes are punched, ranges zeroed, and nothing else is allocated`() throws {
        let served = try Served()
        let client = try NBDClient(served.harness.service.address(), export: "disk")
        let ones = [UInt8](repeating: 0xff, count: 4 * mebibyte)
        try client.write(0, ones)
        let before = try allocatedByteCount(served.origin.path)
        try Command.check("fallocate", ["-p", "-o", "1048576", "-l", "1048576", served.file])
        #expect(before - (try allocatedByteCount(served.origin.path)) == mebibyte)
        try Command.check("fallocate", ["-z", "-n", "-o", "3145728", "-l", "4096", served.file])
        var expected = ones
        expected.replaceSubrange(mebibyte..<2 * mebibyte, with: repeatElement(0, count: mebibyte))
        expected.replaceSubrange(
            3 * mebibyte..<3 * mebibyte + 4096, with: repeatElement(0, count: 4096))
        #expect(try client.read(0, ones.count) == expected)
        #expect(try readFile(served.file, 0..<ones.count) == expected)
        // Twice: a kernel that took the first refusal for "never" would not ask again.
        for _ in 0..<2 {
            let outcome = try Command.run("fallocate", ["-l", "4096", served.file])
            #expect(outcome.status != 0)
            #expect(outcome.diagnostics.contains("not supported"), "\(outcome.diagnostics)")
        }
        try Command.check("fallocate", ["-p", "-o", "0", "-l", "4096", served.file])
    }

    @Test func `data and holes are found where they are`() throws {
        let served = try Served()
        let client = try NBDClient(served.harness.service.address(), export: "disk")
        try client.write(UInt64(2 * mebibyte), [UInt8](repeating: 1, count: mebibyte))
        let file = open(served.file, O_RDONLY | O_CLOEXEC)
        defer { close(file) }
        let (seekData, seekHole) = (Int32(3), Int32(4))
        #expect(lseek(file, 0, seekData) == off_t(2 * mebibyte))
        #expect(lseek(file, 0, seekHole) == 0)
        #expect(lseek(file, off_t(2 * mebibyte + 5), seekData) == off_t(2 * mebibyte + 5))
        #expect(lseek(file, off_t(2 * mebibyte + 5), seekHole) == off_t(3 * mebibyte))
        #expect(lseek(file, off_t(3 * mebibyte), seekData) == -1)
        #expect(errno == ENXIO)
        #expect(lseek(file, off_t(15 * mebibyte), seekHole) == off_t(15 * mebibyte))
    }

    @Test func `it is alone in its directory, has the size of the device and cannot be changed`()
        throws
    {
        let served = try Served()
        let folder = served.harness.mountDirectory + "/1"
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["disk"])
        let attributes = try FileManager.default.attributesOfItem(atPath: served.file)
        #expect(attributes[.size] as? Int == 16 * mebibyte)
        #expect(attributes[.posixPermissions] as? Int == 0o600)
        #expect(
            try FileManager.default.attributesOfItem(atPath: served.harness.mountDirectory)[
                .posixPermissions] as? Int == 0o700)
        #expect(truncate(served.file, 0) == -1)
        #expect(open(served.file + "2", O_WRONLY | O_CREAT, 0o600) == -1)
        #expect(unlink(served.file) == -1)
        let file = open(served.file, O_RDWR | O_CLOEXEC)
        defer { close(file) }
        var bytes = [UInt8](repeating: 7, count: 4096)
        #expect(pread(file, &bytes, 4096, off_t(16 * mebibyte - 100)) == 100)
        #expect(pread(file, &bytes, 4096, off_t(16 * mebibyte)) == 0)
        #expect(pwrite(file, bytes, 4096, off_t(16 * mebibyte - 100)) == -1)
        #expect(errno == ENOSPC)
        #expect(fsync(file) == 0)
    }

    @Test func `a read-only device cannot be written`() throws {
        let served = try Served("--read-only")
        #expect(open(served.file, O_RDWR | O_CLOEXEC) == -1)
        #expect(errno == EROFS)
        let block = try #require(try served.harness.loopDevices().first)
        #expect(try Command.run("dd", ["if=/dev/zero", "of=\(block)", "count=1"]).status != 0)
        #expect(try Command.check("blockdev", ["--getro", block]) == "1\n")
    }
}
