import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

/// A nightly job over three disks under load: every version that was kept is the image of its
/// night.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Thirty nights` {
    private static let byteCount = 16 * mebibyte
    private static let disks = ["a", "b", "c"]

    /// Writes to all disks until it is ended.
    private final class Load: Sendable {
        private let isOver = Atomic(false)

        func run(_ service: TestService, _ seed: UInt64) throws {
            var generator = SeededGenerator(seed: seed)
            let clients = try disks.map {
                try NBDClient(service.address(), export: $0, headers: .structured)
            }
            while !isOver.load(ordering: .relaxed) {
                let length = Int.random(in: 1...16, using: &generator) * 4096
                let offset =
                    Int.random(in: 0...(byteCount - length) / 4096, using: &generator) * 4096
                try clients[Int.random(in: 0..<clients.count, using: &generator)].write(
                    UInt64(offset), generator.bytes(length))
                usleep(2000)
            }
        }

        func end() { isOver.store(true, ordering: .relaxed) }
    }

    /// The nights of one kind of target. `copy`: copies a night; `version`: a raw file of what was
    /// kept of a disk in a night.
    private func perform(
        _ kind: String, _ files: TemporaryDirectory, environment: [String: String] = [:],
        copy: (_ night: Int, _ run: ([String]) throws -> Void) throws -> Void,
        version: (_ disk: String, _ night: Int, _ last: Int) throws -> String
    ) throws {
        let count = sized("nights to \(kind)", soak: 30, otherwise: 3)
        let generator = SeededGenerator.announced("nights to \(kind)")
        for disk in Self.disks {
            try makeSparseFile(files.path(disk), byteCount: Self.byteCount)
        }
        let service = try TestService(
            attaching: Dictionary(
                uniqueKeysWithValues: Self.disks.map { ($0, files.path($0)) }))
        func run(_ arguments: [String]) throws {
            try Command.check(
                TestService.binary, arguments + ["--control", service.controlPath],
                environment: environment, deadline: 300)
        }
        var sums: [String: String] = [:]
        for night in 0..<count {
            let load = Load()
            let writing = Background { try load.run(service, generator.seed &+ UInt64(night)) }
            try run(
                ["snapshot", "create", "--name", "n\(night)", "--storage", "memory:64M"]
                    + Self.disks.flatMap { ["--device", $0] })
            try copy(night, run)
            // What a program of others reads from the image.
            for disk in Self.disks {
                sums["\(disk)\(night)"] = try sum(
                    "nbdcopy 'nbd+unix:///\(disk)@n\(night)?socket=\(service.socketPath)' -")
            }
            load.end()
            try writing.value()
            try run(["snapshot", "destroy", "n\(night)"])
            // Now and then the machine's service is started again between two nights.
            if night % 10 == 1 {
                #expect(try service.stop() == .exited(0))
                try service.restart()
            }
        }
        for night in 0..<count {
            for disk in Self.disks {
                let raw = try version(disk, night, count - 1)
                #expect(
                    try sum("cat '\(raw)'") == sums["\(disk)\(night)"],
                    "\(kind), disk \(disk), night \(night), seed \(generator.seed)")
            }
        }
    }

    private func sum(_ command: String) throws -> String {
        try Command.check("bash", ["-c", "set -o pipefail; \(command) | sha256sum"])
    }

    private static let arePeersHere = Command.exists("nbdcopy") && Command.exists("qemu-nbd")

    @Test(.enabled(if: arePeersHere, "it needs libnbd-bin and qemu-utils"))
    func `of raw files with kept versions`() throws {
        let files = try TemporaryDirectory()
        try perform("raw files", files) { night, run in
            let keep = night > 0 ? ["--keep", "n\(night - 1)"] : []
            try run(
                ["copy"] + Self.disks.map { "\($0)@n\(night)" }
                    + ["--to", files.root, "--since", "auto"] + keep)
        } version: { disk, night, last in
            files.path("\(disk).img" + (night == last ? "" : "@n\(night)"))
        }
    }

    @Test(.enabled(if: arePeersHere, "it needs libnbd-bin and qemu-utils"))
    func `of qcow2 overlays`() throws {
        let files = try TemporaryDirectory()
        try perform("qcow2 overlays", files) { night, run in
            for disk in Self.disks {
                let onto = night > 0 ? ["--onto", files.path("\(disk)-\(night - 1).qcow2")] : []
                try run(
                    ["copy", "\(disk)@n\(night)", files.path("\(disk)-\(night).qcow2")] + onto)
            }
        } version: { disk, night, _ in
            let raw = files.path("version")
            try Command.check(
                "qemu-img",
                ["convert", "-O", "raw", files.path("\(disk)-\(night).qcow2"), raw])
            return raw
        }
    }

    @Test(
        .enabled(if: arePeersHere, "it needs libnbd-bin and qemu-utils"),
        .enabled(if: TestCeph.obstacle == nil, "\(TestCeph.obstacle ?? "")"))
    func `of RBD images`() throws {
        let files = try TemporaryDirectory()
        let ceph = try TestCeph.shared.get()
        let prefix = "nights-\(UInt32.random(in: 0 ... .max))"
        try perform("RBD images", files, environment: ceph.environment) { night, run in
            for disk in Self.disks {
                try run(
                    ["copy", "\(disk)@n\(night)", "rbd:rbd/\(prefix)-\(disk)", "--since", "auto"])
            }
        } version: { disk, night, _ in
            let raw = files.path("version")
            unlink(raw)
            try ceph.rbd("export", "--no-progress", "rbd/\(prefix)-\(disk)@n\(night)", raw)
            return raw
        }
    }
}
