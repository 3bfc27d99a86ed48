import Glibc

// libFuzzer's driver, with one of the targets: `STILLPOINT_FUZZ_TARGET` names it. A target takes
// bytes that may be anything, and traps when what must hold does not.

@_extern(c, "LLVMFuzzerRunDriver")
func runDriver(
    _ count: UnsafeMutablePointer<CInt>,
    _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?>,
    _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> CInt
) -> CInt

/// What SwiftPM makes the program's entry.
@_cdecl("fuzz_main")
public func fuzzMain(
    _ count: CInt, _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
) -> CInt {
    var count = count
    var arguments = arguments
    return runDriver(&count, &arguments, testOneInput)
}

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    note(start, count)
    var input = FuzzInput(UnsafeBufferPointer(start: start, count: count))
    target(&input)
    return 0
}

/// Keeps the input where a trap leaves it: loops block all signals, so that libFuzzer hears nothing
/// of a trap on one and cannot keep it itself.
private func note(_ start: UnsafePointer<UInt8>?, _ count: Int) {
    guard current >= 0 else { return }
    _ = ftruncate(current, 0)
    _ = pwrite(current, start, count, 0)
}

private let current: Int32 =
    getenv("STILLPOINT_FUZZ_INPUT").map {
        open($0, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    } ?? -1

private let target: @Sendable (inout FuzzInput) -> Void = {
    let name = getenv("STILLPOINT_FUZZ_TARGET").map { String(cString: $0) }
    switch name {
    case "handshake": return fuzzHandshake
    case "transmission": return fuzzTransmission
    case "map": return fuzzMap
    case "documents": return fuzzDocuments
    case "configuration": return fuzzConfiguration
    case "mounts": return fuzzMounts
    case "client": return fuzzClient
    case "difference": return fuzzDifference
    default: fatalError("STILLPOINT_FUZZ_TARGET names no target")
    }
}()

/// Where a target keeps a file or a socket: in the directory that `STILLPOINT_FUZZ_FILES` names,
/// which whoever started the fuzzer takes away.
func fuzzPath(_ name: String) -> String {
    guard let directory = getenv("STILLPOINT_FUZZ_FILES") else {
        fatalError("STILLPOINT_FUZZ_FILES names no directory")
    }
    return String(cString: directory) + "/" + name
}

/// Bytes taken one after the other; zeroes behind their end.
struct FuzzInput {
    private var bytes: Slice<UnsafeBufferPointer<UInt8>>

    init(_ bytes: UnsafeBufferPointer<UInt8>) { self.bytes = bytes[...] }

    var isEmpty: Bool { bytes.isEmpty }

    mutating func byte() -> UInt8 { bytes.popFirst() ?? 0 }

    mutating func integer<Value: FixedWidthInteger>() -> Value {
        (0..<MemoryLayout<Value>.size).reduce(Value(0)) { value, _ in
            value << 8 | Value(truncatingIfNeeded: byte())
        }
    }

    /// At most `count` bytes.
    mutating func take(_ count: Int) -> [UInt8] {
        let taken = Array(bytes.prefix(count))
        bytes = bytes.dropFirst(count)
        return taken
    }

    mutating func rest() -> [UInt8] { take(bytes.count) }
}
