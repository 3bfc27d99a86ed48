import Foundation
import Glibc
import TestSupport
import Testing

// What a copy can be written to, as the matrix of tests uses it: each kind can be made, read by a
// program of others, written to behind our back, and replaced by another one under the same name.

/// A kind of target; see the head of this file.
protocol MatrixTarget: AnyObject {
    /// Arguments of a full copy of `disk@SNAPSHOT`.
    func full(_ snapshot: String) -> [String]
    /// Arguments of an increment from the last finished copy.
    func increment(_ snapshot: String, since: String) -> [String]
    /// The copy that was asked for last has been finished.
    func finished()
    /// What the last copy holds.
    func contents(_ byteCount: Int) throws -> [UInt8]
    /// Somebody writes a byte that no test writes otherwise.
    func write(at offset: Int) throws
    /// Another one gets the name, which holds nothing.
    func replace() throws
    /// What that other one holds, or what is left of it, so that a copy into it is seen.
    func isUntouched() throws -> Bool
}

enum MatrixKind: String, CaseIterable, CustomTestStringConvertible {
    case file, disk, qcow, nbdkit, qemuNBD, rbd

    var testDescription: String { rawValue }

    /// Why it cannot be tested here; nil when it can.
    var obstacle: String? {
        switch self {
        case .file: nil
        case .disk: canUseLoopDevices ? nil : "loop devices need root"
        case .qcow: Command.exists("qemu-nbd") ? nil : "it needs qemu-utils"
        case .nbdkit: Command.exists("nbdkit") ? nil : "it needs nbdkit"
        case .qemuNBD: Command.exists("qemu-nbd") ? nil : "it needs qemu-utils"
        case .rbd: TestCeph.obstacle
        }
    }

    /// Kinds that can be tested here; says what is left out, and why.
    static let here: [MatrixKind] = allCases.filter { kind in
        guard let obstacle = kind.obstacle else { return true }
        print("copies to \(kind.rawValue) are skipped: \(obstacle)")
        return false
    }

    /// One for an image of `byteCount` bytes; `room`: bytes that its place has, where that is
    /// limited.
    func make(_ files: String, _ byteCount: Int, name: String = "target") throws
        -> any MatrixTarget
    {
        let path = "\(files)/\(name)"
        switch self {
        case .file: return FileTarget(path)
        case .disk: return try DiskTarget(path, byteCount)
        case .qcow: return QcowTarget(path)
        case .nbdkit, .qemuNBD:
            return try ServedTarget(path, byteCount, withNBDKit: self == .nbdkit)
        case .rbd: return RBDTarget(name + "-\(UInt32.random(in: 0 ... .max))")
        }
    }
}

/// Writes one byte into a file or block device, durably.
func writeByte(_ path: String, at offset: Int) throws {
    let file = open(path, O_WRONLY | O_CLOEXEC)
    defer { close(file) }
    guard pwrite(file, [0xEE], 1, off_t(offset)) == 1, fsync(file) == 0 else {
        throw TestFailure("cannot write \(path): \(errno)")
    }
}

private func isZero(_ path: String, _ byteCount: Int) throws -> Bool {
    try readFile(path, 0..<byteCount).isZero(in: 0..<byteCount)
}

final class FileTarget: MatrixTarget {
    let path: String

    init(_ path: String) { self.path = path }

    func full(_ snapshot: String) -> [String] { ["copy", "disk@\(snapshot)", path] }
    func increment(_ snapshot: String, since: String) -> [String] {
        full(snapshot) + ["--since", since]
    }
    func finished() {}
    func contents(_ byteCount: Int) throws -> [UInt8] { try readFile(path, 0..<byteCount) }
    func write(at offset: Int) throws { try writeByte(path, at: offset) }
    func replace() throws {
        let size = try Int(FileManager.default.attributesOfItem(atPath: path)[.size] as! UInt64)
        rename(path, path + ".former")
        try makeSparseFile(path, byteCount: size)
    }
    func isUntouched() throws -> Bool {
        try isZero(path, Int(FileManager.default.attributesOfItem(atPath: path)[.size] as! UInt64))
    }
}

final class DiskTarget: MatrixTarget {
    private let path: String
    private let byteCount: Int
    private let loop: NumberedLoopDevice

    init(_ path: String, _ byteCount: Int) throws {
        self.path = path
        self.byteCount = byteCount
        try makeSparseFile(path, byteCount: byteCount)
        loop = try NumberedLoopDevice(over: path)
    }

    func full(_ snapshot: String) -> [String] { ["copy", "disk@\(snapshot)", loop.path] }
    func increment(_ snapshot: String, since: String) -> [String] {
        full(snapshot) + ["--since", since]
    }
    func finished() {}
    func contents(_ byteCount: Int) throws -> [UInt8] { try readFile(loop.path, 0..<byteCount) }
    func write(at offset: Int) throws { try writeByte(loop.path, at: offset) }
    func replace() throws {
        try loop.leave()
        try makeSparseFile(path + ".other", byteCount: byteCount)
        try loop.come(over: path + ".other")
    }
    func isUntouched() throws -> Bool {
        let other = path + ".other"
        return try isZero(access(other, F_OK) == 0 ? other : path, byteCount)
    }
}

final class QcowTarget: MatrixTarget {
    private let path: String
    private var number = 0
    private var last: Int?

    init(_ path: String) { self.path = path }

    private func file(_ number: Int) -> String { "\(path)-\(number).qcow2" }

    func full(_ snapshot: String) -> [String] { ["copy", "disk@\(snapshot)", file(number)] }
    func increment(_ snapshot: String, since: String) -> [String] {
        full(snapshot) + ["--onto", file(last ?? 0), "--since", since]
    }
    func finished() {
        last = number
        number += 1
    }
    private var current: String { file(last ?? number) }
    func contents(_ byteCount: Int) throws -> [UInt8] {
        try qcowContents(current, byteCount)
    }
    func write(at offset: Int) throws {
        try Command.check("qemu-io", ["-c", "write -P 0xee \(offset / 512 * 512) 512", current])
    }
    func replace() throws {
        let size = try qcowSize(current)
        rename(current, current + ".former")
        try Command.check("qemu-img", ["create", "-q", "-f", "qcow2", current, "\(size)"])
    }
    func isUntouched() throws -> Bool {
        let size = try qcowSize(current)
        return try qcowContents(current, size).isZero(in: 0..<size)
    }
}

/// Bytes of the disk in a qcow2 file.
func qcowSize(_ path: String) throws -> Int {
    let text = try Command.check("qemu-img", ["info", "--output=json", path])
    let facts = try JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any]
    return facts?["virtual-size"] as? Int ?? -1
}

/// What QEMU reads from a qcow2 file.
func qcowContents(_ path: String, _ byteCount: Int) throws -> [UInt8] {
    let directory = try TemporaryDirectory()
    let raw = directory.path("raw")
    try Command.check("qemu-img", ["convert", "-f", "qcow2", "-O", "raw", path, raw])
    return try readFile(raw, 0..<byteCount)
}

/// A file that a server of others serves.
final class ServedTarget: MatrixTarget {
    let path: String
    private let byteCount: Int
    private let server: ChildProcess
    let uri: String

    init(_ path: String, _ byteCount: Int, withNBDKit: Bool, readOnly: Bool = false) throws {
        self.path = path
        self.byteCount = byteCount
        if access(path, F_OK) != 0 { try makeSparseFile(path, byteCount: byteCount) }
        let directory = try TemporaryDirectory()
        self.directory = directory
        let socket = directory.path("nbd.sock")
        server = try ChildProcess(
            withNBDKit ? "nbdkit" : "qemu-nbd",
            withNBDKit
                ? ["-f", "-U", socket, "file", path]
                : ["--persistent", "--shared=8", "-f", "raw", "-k", socket, path])
        uri = "nbd+unix:///?socket=\(socket)"
        try waitUntil("the server listens") { access(socket, F_OK) == 0 }
    }

    private let directory: TemporaryDirectory

    func full(_ snapshot: String) -> [String] { ["copy", "disk@\(snapshot)", uri] }
    func increment(_ snapshot: String, since: String) -> [String] {
        full(snapshot) + ["--since", since]
    }
    func finished() {}
    func contents(_ byteCount: Int) throws -> [UInt8] { try readFile(path, 0..<byteCount) }
    func write(at offset: Int) throws { try writeByte(path, at: offset) }
    func replace() throws {
        // The server goes on with the file it has open: its contents are another disk's.
        guard truncate(path, 0) == 0, truncate(path, off_t(byteCount)) == 0 else {
            throw TestFailure("truncate: \(errno)")
        }
    }
    func isUntouched() throws -> Bool { try isZero(path, byteCount) }
}
