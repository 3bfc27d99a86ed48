internal import CLinux
internal import Glibc

// Which filesystems are frozen, in a file of the runtime directory, so that somebody else can thaw
// them should the service die in between: the guardian at once, the service manager, or the next
// start.
//
// Invariants
// - The file names every filesystem before its freeze is asked for, and until its thaw is back.
// - One mount point per line, in the order in which they are to be thawed; a newline or backslash
//   in it is written like the kernel does, `\012` and `\134`.
// - Thawing what is not frozen does nothing, so the list may name too many, and several may thaw.

/// The list of frozen filesystems; see the head of this file.
package struct FrozenList: Sendable {
    /// Its name in the runtime directory.
    package static let fileName = "frozen-filesystems"
    private static let byteCountMax = 1 << 20

    /// What became of a filesystem of the list.
    package struct Thaw: Equatable, Sendable {
        package enum Outcome: Equatable, Sendable {
            case thawed
            /// It was not frozen, or nothing is mounted there any more.
            case wasNotFrozen
            /// It could not be thawed, for this errno.
            case failed(Int32)
        }

        package let mountPoint: String
        package let outcome: Outcome
    }

    private let path: String

    package init(runtimeDirectory: String) {
        path = runtimeDirectory + "/" + Self.fileName
    }

    /// Replaces the list; an empty one removes the file. Blocks.
    func replace(with mountPoints: [[UInt8]]) throws(SystemFailure) {
        guard !mountPoints.isEmpty else {
            guard unlink(path) == 0 || errno == ENOENT else {
                throw SystemFailure(subject: path, errnoValue: errno)
            }
            return
        }
        try writeDurably(mountPoints.flatMap { Self.escaped($0) + [10] }, to: path)
    }

    /// Thaws what the list names and removes it, unless something could not be thawed. Blocks.
    package func thawAll() -> [Thaw] {
        guard let text = (try? readWhole(path, byteCountMax: Self.byteCountMax)) ?? nil else {
            return []
        }
        let thaws = text.split(separator: 10).map { line in Self.thaw(Self.unescaped(line)) }
        let isDone = thaws.allSatisfy {
            if case .failed = $0.outcome { false } else { true }
        }
        // A list that stays is harmless: the next start finds nothing frozen.
        if isDone { unlink(path) }
        return thaws
    }

    private static func thaw(_ mountPoint: [UInt8]) -> Thaw {
        let name = String(decoding: mountPoint, as: UTF8.self)
        let descriptor = open(
            mountPoint.map(CChar.init(bitPattern:)) + [0],
            O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)
        guard descriptor >= 0 else {
            let failure = errno
            return Thaw(
                mountPoint: name, outcome: failure == ENOENT ? .wasNotFrozen : .failed(failure))
        }
        defer { close(descriptor) }
        guard cl_thaw_filesystem(descriptor) == 0 else {
            let failure = errno
            return Thaw(
                mountPoint: name, outcome: failure == EINVAL ? .wasNotFrozen : .failed(failure))
        }
        return Thaw(mountPoint: name, outcome: .thawed)
    }

    private static func escaped(_ path: [UInt8]) -> [UInt8] {
        path.flatMap { byte -> [UInt8] in
            switch byte {
            case 10: Array("\\012".utf8)
            case UInt8(ascii: "\\"): Array("\\134".utf8)
            default: [byte]
            }
        }
    }

    private static func unescaped(_ line: ArraySlice<UInt8>) -> [UInt8] {
        var bytes: [UInt8] = []
        var rest = line
        while let byte = rest.popFirst() {
            if byte == UInt8(ascii: "\\"), rest.starts(with: "012".utf8) {
                bytes.append(10)
                rest.removeFirst(3)
            } else if byte == UInt8(ascii: "\\"), rest.starts(with: "134".utf8) {
                bytes.append(byte)
                rest.removeFirst(3)
            } else {
                bytes.append(byte)
            }
        }
        return bytes
    }
}
