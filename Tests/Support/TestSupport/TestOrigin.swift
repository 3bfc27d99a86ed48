import CTestSupport
import Foundation
import Glibc

/// The kinds of origin that every conformance test runs over.
package enum OriginKind: String, CaseIterable, Sendable, CustomStringConvertible {
    case sparseFile = "sparse file"
    case fullFile = "full file"
    case loop512 = "loop device with 512-byte sectors"
    case loop4096 = "loop device with 4096-byte sectors"
    case tmpfsFile = "file on tmpfs"

    /// Those that can be made on this machine.
    package static var available: [OriginKind] {
        allCases.filter { canUseLoopDevices || !$0.isBlockDevice }
    }

    package var description: String { rawValue }
    package var isBlockDevice: Bool { self == .loop512 || self == .loop4096 }
}

/// A disk for one test: made before, removed after.
package final class TestOrigin: Sendable {
    package let kind: OriginKind
    package let path: String
    package let byteCount: Int
    private let loop: LoopDevice?
    private let directory: TemporaryDirectory

    package init(_ kind: OriginKind, byteCount: Int) throws {
        self.kind = kind
        self.byteCount = byteCount
        directory = try TemporaryDirectory(inMemory: kind == .tmpfsFile)
        let file = directory.path("disk.img")
        try makeSparseFile(file, byteCount: byteCount)
        if kind == .fullFile {
            let descriptor = open(file, O_WRONLY | O_CLOEXEC)
            defer { close(descriptor) }
            let ones = [UInt8](repeating: 0x5a, count: 1 << 20)
            var offset = 0
            while offset < byteCount {
                let count = min(ones.count, byteCount - offset)
                guard pwrite(descriptor, ones, count, off_t(offset)) == count else {
                    throw TestFailure("cannot fill \(file): \(errno)")
                }
                offset += count
            }
        }
        switch kind {
        case .loop512: loop = try LoopDevice(over: file, sectorSize: 512)
        case .loop4096: loop = try LoopDevice(over: file, sectorSize: 4096)
        case .sparseFile, .fullFile, .tmpfsFile: loop = nil
        }
        path = loop?.path ?? file
    }

    /// The origin's bytes as another reader of the machine sees them.
    package func read(_ range: Range<Int>) throws -> [UInt8] {
        try readFile(path, range)
    }
}

/// Makes a file of `byteCount` bytes that is one hole.
package func makeSparseFile(_ path: String, byteCount: Int) throws {
    let descriptor = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else { throw TestFailure("cannot make \(path): \(errno)") }
    defer { close(descriptor) }
    guard ftruncate(descriptor, off_t(byteCount)) == 0 else {
        throw TestFailure("cannot size \(path): \(errno)")
    }
}

/// Writes a file of `byteCount` random bytes.
package func makeRandomFile(
    _ path: String, byteCount: Int, generator: inout SeededGenerator
) throws {
    try makeSparseFile(path, byteCount: byteCount)
    let descriptor = open(path, O_WRONLY | O_CLOEXEC)
    defer { close(descriptor) }
    var offset = 0
    while offset < byteCount {
        let bytes = generator.bytes(min(1 << 20, byteCount - offset))
        guard pwrite(descriptor, bytes, bytes.count, off_t(offset)) == bytes.count else {
            throw TestFailure("cannot fill \(path): \(errno)")
        }
        offset += bytes.count
    }
}

/// The bytes of a file or block device in `range`.
package func readFile(_ path: String, _ range: Range<Int>) throws -> [UInt8] {
    let descriptor = open(path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw TestFailure("cannot open \(path): \(errno)") }
    defer { close(descriptor) }
    var bytes = [UInt8](repeating: 0, count: range.count)
    guard pread(descriptor, &bytes, range.count, off_t(range.lowerBound)) == range.count else {
        throw TestFailure("cannot read \(path) at \(range): \(errno)")
    }
    return bytes
}
