import Foundation
import TestSupport
import Testing

/// A device that vanishes: the block device of another service that is killed, guardian and all.
@Suite(.needsBlockDevices)
struct `A device that vanishes` {
    @Test func `its requests fail, its snapshots are corrupted, other devices go on`() throws {
        let below = try TestOrigin(.sparseFile, byteCount: 16 * mebibyte)
        let owner = try BlockHarness(attaching: ["below": below.path])
        let block = try owner.attachBlock("below", "--temporary")
        let other = try TestOrigin(.sparseFile, byteCount: 16 * mebibyte)
        let service = try TestService(attaching: ["gone": block, "fine": other.path])
        let control = ["--control", service.controlPath]
        for (name, device) in [("of-gone", "gone"), ("of-fine", "fine")] {
            try Command.check(
                TestService.binary,
                [
                    "snapshot", "create", "--name", name, "--device", device, "--storage",
                    "memory:64M",
                ] + control)
        }
        let gone = try NBDClient(service.address(), export: "gone", headers: .structured)
        let fine = try NBDClient(service.address(), export: "fine", headers: .structured)
        let bytes = [UInt8](repeating: 0x5a, count: 4096)
        try gone.write(0, bytes)
        try owner.killWithGuardian()

        #expect(try gone.perform(NBDRequest(.read, length: 4096)).error != nil)
        let write = NBDRequest(.write, offset: 65536, length: 4096, payload: bytes)
        #expect(try gone.perform(write).error != nil)
        let events = try Command.check(
            TestService.binary, ["events", "--snapshot", "of-gone", "--json"] + control)
        #expect(events.contains("\"corrupted\""), "\(events)")
        #expect(events.contains("\"gone\""), "\(events)")
        let list = try Command.check(TestService.binary, ["snapshot", "list", "--json"] + control)
        #expect(list.contains("\"corrupted\"") && list.contains("\"held\""), "\(list)")

        try fine.write(8192, bytes)
        #expect(try fine.read(8192, 4096) == bytes)
        let image = try NBDClient(service.address(), export: "fine@of-fine", headers: .structured)
        #expect(try image.read(8192, 4096) == [UInt8](repeating: 0, count: 4096))
        // Its last flush fails, and it says so.
        #expect(try service.stop() == .exited(1))
        try owner.service.restart()
        #expect(try owner.loopDevices().isEmpty)
    }
}
