import Foundation
import Glibc
import TestSupport
import Testing

private let tebibyte = 1 << 40

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The picture of changes` {
    private struct Summary: Decodable {
        struct Cut: Decodable { let name: String?, epoch: Int }
        struct Checkpoint: Decodable, Equatable { let name: String, epoch: Int, changed_bytes: Int }
        struct Cell: Decodable, Equatable { let changed_blocks: Int, epoch: Int, last: String? }
        let since: Cut
        let size: Int, cell_size: Int, changed_bytes: Int
        let checkpoints: [Checkpoint]
        let cells: [Cell]
    }

    private func summary(_ harness: PageHarness, _ query: String = "") throws -> Summary {
        let answer = try harness.ask("GET", "/v1/devices/big/changes/summary" + query)
        guard answer.status == 200 else { throw TestFailure(answer.body) }
        return try JSONDecoder().decode(Summary.self, from: Data(answer.body.utf8))
    }

    @Test func `is as small for 15 TiB as for a disk image`() throws {
        let harness = try PageHarness()
        try harness.attach("big", byteCount: 15 * tebibyte)
        let blocksPerCell = UInt64(15 * tebibyte / 4096 / 2048 + 15) / 16 * 16
        // Three blocks in every hundredth cell.
        let cells = stride(from: UInt64(0), to: 2048, by: 100)
        try harness.write(
            "big", blocks: cells.flatMap { cell in [1, 2, 70].map { cell * blocksPerCell + $0 } })
        try harness.done("checkpoint", "create", "monday", "--device", "big")
        try harness.write("big", blocks: [7 * blocksPerCell])
        let begin = monotonicSeconds()
        let answer = try harness.ask(
            "GET", "/v1/devices/big/changes/summary?cells=2048&since=monday")
        #expect(answer.status == 200 && answer.body.utf8.count < 2048 * 64 + 2000)
        // Generous: others work on this machine.
        #expect(monotonicSeconds() - begin < 10)
        let all = try summary(harness, "?cells=2048")
        #expect(all.since.name == "generation" && all.since.epoch == 0)
        #expect(all.size == 15 * tebibyte && all.cell_size == Int(blocksPerCell) * 4096)
        #expect(all.cells.count <= 2048)
        #expect(all.changed_bytes == (3 * 21 + 1) * 4096)
        for (index, cell) in all.cells.enumerated() {
            switch index {
            case 7: #expect(cell == .init(changed_blocks: 1, epoch: 2, last: "monday"))
            case let index where index % 100 == 0:
                #expect(cell == .init(changed_blocks: 3, epoch: 1, last: nil))
            default: #expect(cell == .init(changed_blocks: 0, epoch: 0, last: nil))
            }
        }
        #expect(all.checkpoints == [.init(name: "monday", epoch: 1, changed_bytes: 4096)])
        let since = try summary(harness, "?cells=2048&since=monday")
        #expect(since.changed_bytes == 4096)
        #expect(since.cells.reduce(0) { $0 + $1.changed_blocks } == 1)
        #expect(since.cells[100] == .init(changed_blocks: 0, epoch: 1, last: nil))
    }

    @Test func `counts what grew, and refuses what is not known`() throws {
        let harness = try PageHarness()
        try harness.attach("big", byteCount: 1 << 20)
        try harness.done("checkpoint", "create", "monday", "--device", "big")
        let path = harness.service.directory.path("big.img")
        #expect(truncate(path, 2 << 20) == 0)
        try harness.done("device", "resize", "big")
        let grown = try summary(harness, "?cells=4&since=monday")
        #expect(grown.changed_bytes == 1 << 20)
        #expect(grown.cells.map(\.changed_blocks) == [0, 0, 128, 128])
        #expect(grown.cells.map(\.last) == [nil, nil, "monday", "monday"])
        for (query, status) in [
            ("?cells=0", 400), ("?cells=4097", 400), ("?cells=x", 400), ("?since=", 400),
            ("?since=tuesday", 404), ("?until=monday", 400),
        ] {
            let answer = try harness.ask("GET", "/v1/devices/big/changes/summary" + query)
            #expect(answer.status == status, "\(query): \(answer.body)")
        }
        #expect(try harness.ask("GET", "/v1/devices/none/changes/summary").status == 404)
        // A new history: the cut is of the one before.
        #expect(truncate(path, 1 << 19) == 0)
        try harness.done("device", "resize", "big")
        #expect(
            try harness.ask("GET", "/v1/devices/big/changes/summary?since=monday").status == 410)
        #expect(try summary(harness).checkpoints == [])
    }

    @Test func `is made once for all who look at the same time`() throws {
        let harness = try PageHarness()
        try harness.attach("big", byteCount: 15 * tebibyte)
        try harness.write("big", blocks: (0..<300).map { $0 * 8192 })
        let first = try harness.ask("GET", "/v1/devices/big/changes/summary").body
        try harness.write("big", blocks: [1])
        // Within a moment the answer is that of before, on the control socket it is not.
        #expect(try harness.ask("GET", "/v1/devices/big/changes/summary").body == first)
        let own = try Command.check(
            "curl",
            [
                "-sS", "--unix-socket", harness.service.controlPath,
                "http://localhost/v1/devices/big/changes/summary",
            ])
        #expect(own != first)
    }
}
