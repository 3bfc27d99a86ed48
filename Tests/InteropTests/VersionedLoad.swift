// A load whose every sector says which write it came from, and a record of what has been promised.
//
// A block is 4 KiB. A write of version v puts block number, version and a check word into each of
// its eight sectors, so that a sector that is neither old nor new is recognised. At most one write
// per block is in flight. For every block is remembered:
//
//   issued    the highest version sent
//   acked     the highest version whose success was received
//   stable    the highest version promised to survive: acknowledged with FUA, or acknowledged before
//             a flush was sent whose success was received

import Foundation
import Glibc
import TestSupport

/// Drives several connections with writes, FUA writes and flushes, and checks what is left.
final class VersionedLoad {
    static let blockByteCount = 4096

    private enum Work {
        case write(block: Int, version: UInt64, isFUA: Bool)
        case flush(acknowledged: [UInt64])
    }

    let blockCount: Int
    private(set) var issued: [UInt64]
    private(set) var acknowledged: [UInt64]
    private(set) var stable: [UInt64]
    private(set) var acknowledgedCount = 0
    private var inFlight: [UInt64: Work] = [:]
    private var busy: Set<Int> = []
    private var generator: SeededGenerator
    private var lastCookie: UInt64 = 0
    private let salt: UInt64

    init(blockCount: Int, generator: SeededGenerator) {
        self.blockCount = blockCount
        self.generator = generator
        salt = generator.seed
        issued = Array(repeating: 0, count: blockCount)
        acknowledged = issued
        stable = issued
    }

    /// Keeps `depth` requests in flight on each connection until `count` have been acknowledged,
    /// then calls `interrupt` with requests in flight, and reads what is still answered.
    func run(
        _ clients: [NBDClient], depth: Int, until count: Int, interrupt: () throws -> Void
    ) throws {
        let target = acknowledgedCount + count
        for client in clients { for _ in 0..<depth { try sendNext(client) } }
        while acknowledgedCount < target {
            for client in clients {
                try receiveOne(client, mayFail: false)
                try sendNext(client)
            }
        }
        try interrupt()
        // Whether answered, refused or cut off: what was not acknowledged may or may not be there.
        for client in clients {
            do {
                client.shutdownSending()
                while true { try receiveOne(client, mayFail: true) }
            } catch is ConnectionEnded {}
        }
        inFlight.removeAll()
        busy.removeAll()
    }

    private func sendNext(_ client: NBDClient) throws {
        lastCookie += 1
        if Int.random(in: 0..<32, using: &generator) == 0 {
            inFlight[lastCookie] = .flush(acknowledged: acknowledged)
            return try client.send(NBDRequest(.flush, cookie: lastCookie))
        }
        var block = Int.random(in: 0..<blockCount, using: &generator)
        while busy.contains(block) { block = (block + 1) % blockCount }
        busy.insert(block)
        issued[block] += 1
        let isFUA = Int.random(in: 0..<16, using: &generator) == 0
        inFlight[lastCookie] = .write(block: block, version: issued[block], isFUA: isFUA)
        try client.send(
            NBDRequest(
                .write, flags: isFUA ? NBD.CommandFlag.fua : 0, cookie: lastCookie,
                offset: UInt64(block * Self.blockByteCount), length: UInt64(Self.blockByteCount),
                payload: contents(of: block, version: issued[block])))
    }

    private func receiveOne(_ client: NBDClient, mayFail: Bool) throws {
        let chunk = try client.receiveChunk()
        guard let work = inFlight.removeValue(forKey: chunk.cookie) else {
            throw TestFailure("a reply to nothing: \(chunk.cookie)")
        }
        if let error = chunk.error {
            if case .write(let block, _, _) = work { busy.remove(block) }
            guard mayFail else { throw TestFailure("error \(error) while all was well") }
            return
        }
        acknowledgedCount += 1
        switch work {
        case .write(let block, let version, let isFUA):
            busy.remove(block)
            acknowledged[block] = max(acknowledged[block], version)
            if isFUA { stable[block] = max(stable[block], version) }
        case .flush(let promised):
            for block in 0..<blockCount { stable[block] = max(stable[block], promised[block]) }
        }
    }

    private func checkWord(_ block: Int, _ version: UInt64, _ sector: Int) -> UInt64 {
        // Any mixing will do; wrapping is meant.
        (salt ^ UInt64(block) &* 0x9e37_79b9_7f4a_7c15 ^ version &* 0xbf58_476d_1ce4_e5b9)
            &+ UInt64(sector)
    }

    private func contents(of block: Int, version: UInt64) -> [UInt8] {
        var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: version), count: 4096)
        bytes.withUnsafeMutableBytes { buffer in
            for sector in 0..<8 {
                let at = sector * 512
                buffer.storeBytes(of: UInt64(block), toByteOffset: at, as: UInt64.self)
                buffer.storeBytes(of: version, toByteOffset: at + 8, as: UInt64.self)
                let check = checkWord(block, version, sector)
                buffer.storeBytes(of: check, toByteOffset: at + 504, as: UInt64.self)
            }
        }
        return bytes
    }

    /// What the disk at `path` lost of what was promised: descriptions, none when all is well.
    ///
    /// `floor` is the promise to check against: `stable` after a power cut, `acknowledged` after a
    /// mere kill. What is found counts as stable from now on, since a test goes on from there.
    func losses(at path: String, floor: [UInt64]) throws -> [String] {
        var found: [String] = []
        let bytes = try readFile(path, 0..<blockCount * Self.blockByteCount)
        bytes.withUnsafeBytes { buffer in
            for block in 0..<blockCount {
                for sector in 0..<8 {
                    let at = block * Self.blockByteCount + sector * 512
                    let name = buffer.loadUnaligned(fromByteOffset: at, as: UInt64.self)
                    let version = buffer.loadUnaligned(fromByteOffset: at + 8, as: UInt64.self)
                    let check = buffer.loadUnaligned(fromByteOffset: at + 504, as: UInt64.self)
                    let place = "block \(block) sector \(sector)"
                    if version == 0 && name == 0 && check == 0 {
                        guard floor[block] > 0 else { continue }
                        found.append("\(place): nothing, not \(floor[block])")
                    } else if name != UInt64(block) || check != checkWord(block, version, sector) {
                        found.append("\(place): garbage")
                    } else if version < floor[block] {
                        found.append("\(place): version \(version), not \(floor[block])")
                    } else if version > issued[block] {
                        found.append("\(place): version \(version) was never written")
                    }
                }
            }
        }
        return found
    }

    /// Begins anew on whatever the disk holds: every version from now on is higher than any before.
    func forgetUnpromised() {
        acknowledged = stable
    }
}
