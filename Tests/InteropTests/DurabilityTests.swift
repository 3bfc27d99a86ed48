import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// What was promised to be there is there, when the power fails and when the service is killed.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Durability` {
    private static let blockCount = 2048

    @Test(
        .enabled(if: canUseFUSE, "FUSE needs root and /dev/fuse"),
        arguments: ["everything unsynced is lost", "any part of what is unsynced is lost"])
    func `what was flushed survives twenty power cuts under load`(loss: String) throws {
        var generator = SeededGenerator.announced("power cuts, \(loss)")
        let filesystem = try PowerCutFilesystem(byteCount: Self.blockCount * 4096)
        let service = try TestService(attaching: ["disk": filesystem.diskPath])
        let load = VersionedLoad(blockCount: Self.blockCount, generator: generator)
        var lostChanges = 0
        for round in 1...20 {
            let clients = try (0..<2).map { _ in
                try NBDClient(service.address(), export: "disk", headers: .structured)
            }
            let count = Int.random(in: 200...2000, using: &generator)
            let seed = loss.hasPrefix("any") ? generator.next() : nil
            try load.run(clients, depth: 16, until: count) {
                lostChanges += try filesystem.cutPower(seed: seed)
            }
            try service.process.killAndWait()
            try filesystem.restorePower()
            let losses = try load.losses(at: filesystem.diskPath, floor: load.stable)
            try #require(losses.isEmpty, "cut \(round): \(losses.count) lost, \(losses.prefix(5))")
            load.forgetUnpromised()
            try service.restart()
        }
        print("20 cuts: \(load.acknowledgedCount) acknowledged, \(lostChanges) changes unsynced")
        // If nothing was ever unsynced at a cut, nothing was tested.
        #expect(lostChanges > 0)
        #expect(load.stable.contains { $0 > 0 })
    }

    @Test(arguments: [OriginKind.sparseFile, .tmpfsFile])
    func `what was acknowledged survives kill -9 of the service`(kind: OriginKind) throws {
        var generator = SeededGenerator.announced("kill -9, \(kind)")
        let origin = try TestOrigin(kind, byteCount: Self.blockCount * 4096)
        let service = try TestService(attaching: ["disk": origin.path])
        let load = VersionedLoad(blockCount: Self.blockCount, generator: generator)
        for round in 1...20 {
            let clients = try (0..<2).map { _ in
                try NBDClient(service.address(), export: "disk", headers: .structured)
            }
            let count = Int.random(in: 200...2000, using: &generator)
            try load.run(clients, depth: 16, until: count) {
                try service.process.killAndWait()
            }
            // Restarted first: that waits until no request of the dead service is in the kernel.
            try service.restart()
            let losses = try load.losses(at: origin.path, floor: load.acknowledged)
            try #require(losses.isEmpty, "kill \(round): \(losses.count) lost, \(losses.prefix(5))")
        }
        #expect(load.acknowledgedCount >= 20 * 200)
    }

    @Test(.enabled(if: canUseFUSE, "FUSE needs root and /dev/fuse"))
    func `after a failed flush every later one fails until the device is attached again`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 * mebibyte)
        let service = try TestService(attaching: ["disk": filesystem.diskPath])
        let client = try NBDClient(service.address(), export: "disk", headers: .structured)
        let bytes = [UInt8](repeating: 1, count: 4096)
        try client.write(0, bytes)
        try client.succeed(NBDRequest(.flush))
        try filesystem.fail("fsync", at: 1, with: EIO)
        #expect(try client.perform(NBDRequest(.flush)).error == NBD.ErrorNumber.inputOutput)
        // The disk is well again, but what the failed flush has lost nobody knows.
        for _ in 0..<3 {
            #expect(try client.perform(NBDRequest(.flush)).error == NBD.ErrorNumber.inputOutput)
        }
        let other = try NBDClient(service.address(), export: "disk", headers: .structured)
        #expect(try other.perform(NBDRequest(.flush)).error == NBD.ErrorNumber.inputOutput)
        let fua = try other.perform(
            NBDRequest(
                .write, flags: NBD.CommandFlag.fua, offset: 8192, length: 4096, payload: bytes))
        #expect(fua.error == NBD.ErrorNumber.inputOutput)
        // Reads and plain writes go on.
        try other.write(4096, bytes)
        #expect(try other.read(4096, 4096) == bytes)
        service.process.send(signal: SIGTERM)
        _ = try service.process.wait(deadline: 120)
        try service.restart()
        let again = try NBDClient(service.address(), export: "disk", headers: .structured)
        try again.succeed(NBDRequest(.flush))
    }

    @Test(.enabled(if: canUseFUSE, "FUSE needs root and /dev/fuse"))
    func `an error of the origin reaches the request that met it and no other`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 * mebibyte)
        let service = try TestService(attaching: ["disk": filesystem.diskPath])
        let client = try NBDClient(service.address(), export: "disk", headers: .structured)
        let bytes = [UInt8](repeating: 6, count: 4096)
        try client.write(0, bytes)
        try filesystem.fail("write", at: 1, with: EIO)
        let write = try client.perform(
            NBDRequest(.write, offset: 4096, length: 4096, payload: bytes))
        #expect(write.error == NBD.ErrorNumber.inputOutput)
        try client.write(4096, bytes)
        try filesystem.fail("write", at: 1, with: ENOSPC)
        let full = try client.perform(
            NBDRequest(.write, offset: 8192, length: 4096, payload: bytes))
        #expect(full.error == NBD.ErrorNumber.noSpace)
        try filesystem.fail("read", at: 1, with: EIO)
        let read = try client.perform(NBDRequest(.read, offset: 0, length: 4096))
        #expect(read.error == NBD.ErrorNumber.inputOutput)
        #expect(try client.read(0, 8192) == bytes + bytes)
        try client.succeed(NBDRequest(.flush))
    }

    @Test(.enabled(if: canUseFUSE, "FUSE needs root and /dev/fuse"))
    func `a flush waits for the origin and other requests do not wait for it`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 4 * mebibyte)
        let service = try TestService(attaching: ["disk": filesystem.diskPath], loops: 1)
        let client = try NBDClient(service.address(), export: "disk", headers: .structured)
        let bytes = [UInt8](repeating: 6, count: 4096)
        try client.write(0, bytes)
        try filesystem.delay("fsync", milliseconds: 1000)
        let before = try filesystem.count(of: "fsync")
        try client.send(NBDRequest(.flush, cookie: 1))
        try client.send(NBDRequest(.read, cookie: 2, offset: 0, length: 4096))
        let first = try client.receiveChunk { _ in 4096 }
        #expect(first.cookie == 2, "the read waited for the flush")
        let second = try client.receiveChunk()
        #expect(second.cookie == 1 && second.error == nil)
        #expect(try filesystem.count(of: "fsync") == before + 1)
    }
}
