import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `A device that is resized` {
    private let block = 4096

    private func size(_ harness: GenerationHarness) throws -> Int {
        let device = try harness.json(["device", "show", "vm"]) as? [String: Any]
        return device?["size"] as? Int ?? -1
    }

    @Test func `has the new size, and what grew counts as changed`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage(byteCount: 1 << 20)
        try harness.checkpoint("base")
        try harness.write(1, block: 4)
        #expect(try harness.run(["device", "resize", "vm"]).status == 0)
        #expect(try size(harness) == 1 << 20)
        // Far beyond the map's first page.
        #expect(truncate(path, 200 << 20) == 0)
        let outcome = try harness.run(["device", "resize", "vm"])
        #expect(outcome.status == 0)
        #expect(outcome.output.contains("200 MiB"))
        #expect(try size(harness) == 200 << 20)
        let event = try harness.event("device-resized")
        #expect(event["device"] as? String == "vm")
        let grown = Set((1 << 20) / block..<(200 << 20) / block)
        #expect(try harness.changedBlocks(since: "base") == grown.union([4]))
        #expect(try harness.changedBlocks(since: "generation") == grown.union([4]))
        try harness.checkpoint("grown")
        try harness.write(2, block: (199 << 20) / block)
        #expect(try harness.changedBlocks(since: "grown") == [(199 << 20) / block])
        try harness.service.process.killAndWait()
        try harness.service.restart()
        try harness.expectContinued()
        #expect(try size(harness) == 200 << 20)
        #expect(try harness.changedBlocks(since: "grown") == [(199 << 20) / block])
        try harness.stop()
        try harness.service.restart()
        #expect(try harness.changedBlocks(since: "base") == grown.union([4]))
    }

    @Test func `takes the size that a snapshot finds`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage(byteCount: 1 << 20)
        #expect(truncate(path, 8 << 20) == 0)
        try harness.done(["snapshot", "create", "--device", "vm", "--name", "s"])
        #expect(try size(harness) == 8 << 20)
        let snapshot = try harness.json(["snapshot", "show", "s"]) as? [String: Any]
        let devices = snapshot?["devices"] as? [[String: Any]]
        #expect(devices?.first?["size"] as? Int == 8 << 20)
        #expect(try harness.history().reason.contains("first time"))
    }

    @Test func `cannot shrink while a snapshot needs what would be lost`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage(byteCount: 8 << 20)
        try harness.done(["snapshot", "create", "--device", "vm", "--name", "s"])
        #expect(truncate(path, 4 << 20) == 0)
        let refused = try harness.run(["device", "resize", "vm"])
        #expect(refused.status == 4)
        #expect(refused.diagnostics.contains("snapshot(s) s"))
        #expect(try size(harness) == 8 << 20)
        try harness.done(["snapshot", "destroy", "s"])
        let old = try harness.history().generation
        try harness.done(["device", "resize", "vm"])
        #expect(try size(harness) == 4 << 20)
        let now = try harness.history()
        #expect(now.generation != old)
        #expect(now.reason.contains("shrunk"))
        #expect(try harness.status(ofChangesSince: "s") == 5)
        // A client that is connected since before may not go beyond the end.
        try harness.checkpoint("small")
        try harness.write(1, block: 1023)
        #expect(try harness.changedBlocks(since: "small") == [1023])
    }

    @Test(arguments: NBDClient.Headers.allCases)
    func `refuses a write that was announced before it shrank`(headers: NBDClient.Headers) throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage(byteCount: 16 << 20)
        let client = try NBDClient(
            harness.service.address(), export: "vm", headers: headers)
        let payload = [UInt8](repeating: 7, count: 4096)
        let request = NBDRequest(
            .write, cookie: 7, offset: 16 << 20 - 4096, length: 4096, payload: payload
        ).encoded(headers)
        // The header and the first bytes of the payload.
        try client.send(Array(request.dropLast(4000)))
        #expect(truncate(path, 8 << 20) == 0)
        try harness.done(["device", "resize", "vm"])
        try client.send(Array(request.suffix(4000)))
        let answer = try client.receiveChunk()
        #expect(answer.cookie == 7 && answer.error == NBD.ErrorNumber.noSpace)
        // The connection goes on, with the size of now.
        #expect(throws: TestFailure.self) { _ = try client.read(8 << 20, 4096) }
        try client.write(8 << 20 - 4096, payload)
        #expect(try client.read(8 << 20 - 4096, 4096) == payload)
    }

    @Test func `stays as it is when the origin's size is of no use`() throws {
        let harness = try GenerationHarness()
        let path = try harness.attachImage(byteCount: 8 << 20)
        #expect(truncate(path, 8 << 20 | 100) == 0)
        let outcome = try harness.run(["device", "resize", "vm"])
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains("not a multiple of"))
        #expect(try size(harness) == 8 << 20)
        #expect(try harness.run(["device", "resize", "none"]).status == 3)
    }
}
