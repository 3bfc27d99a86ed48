internal import Hummingbird
internal import HummingbirdCore
internal import NIOCore

// Leaves the paths of the machine out of what the page's listeners answer (`--http-hide-paths`).
//
// Documents are gone through as they are sent, string by string: a key that is added later is
// covered, messages and events too. Names of block devices that people see in `/dev` anyway stay.
//
// Invariants
// - A string that begins like a path is hidden as a whole; within a string, a path is hidden to its
//   end, which is the next space, quote or bracket.
// - What is hidden is never longer than what it stands for, and JSON stays JSON.

/// Hides paths in JSON; see the head of this file.
struct HiddenPaths: RouterMiddleware {
    typealias Context = ControlContext

    func handle(
        _ request: Request, context: Context,
        next: (Request, Context) async throws -> Response
    ) async throws -> Response {
        var response = try await next(request, context)
        let type = response.headers[.contentType] ?? ""
        guard type.hasPrefix("application/json") || type.hasPrefix("text/event-stream") else {
            return response
        }
        response.body = response.body.map { ByteBuffer(bytes: Self.hidden($0.readableBytesView)) }
        return response
    }

    private static let shown = ["/dev/stillpoint/", "/dev/loop"].map { Array($0.utf8) }
    private static let replacement = Array("(hidden)".utf8)
    private static let quote = UInt8(ascii: "\"")
    private static let slash = UInt8(ascii: "/")

    /// The same document without paths. Strings are whole in it.
    static func hidden(_ document: some RandomAccessCollection<UInt8>) -> [UInt8] {
        let bytes = Array(document)
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count)
        var position = 0
        while position < bytes.count {
            guard bytes[position] == quote else {
                result.append(bytes[position])
                position += 1
                continue
            }
            var end = position + 1
            while end < bytes.count, bytes[end] != quote {
                end += bytes[end] == UInt8(ascii: "\\") ? 2 : 1
            }
            end = min(end, bytes.count)
            result.append(quote)
            hide(bytes[(position + 1)..<end], into: &result)
            if end < bytes.count { result.append(quote) }
            position = end + 1
        }
        return result
    }

    private static func hide(_ text: ArraySlice<UInt8>, into result: inout [UInt8]) {
        guard let first = text.first else { return }
        if first == slash, !isShown(text) {
            result += replacement
            return
        }
        var rest = text
        var before = UInt8(ascii: " ")
        while let byte = rest.first {
            guard byte == slash, begins(after: before),
                rest.dropFirst().first.map(isOfPath) ?? false
            else {
                result.append(byte)
                before = byte
                rest = rest.dropFirst()
                continue
            }
            let path = rest.prefix(while: isOfPath)
            result += isShown(path) ? Array(path) : replacement
            before = path.last ?? slash
            rest = rest.dropFirst(path.count)
        }
    }

    private static func isShown(_ path: ArraySlice<UInt8>) -> Bool {
        shown.contains { path.starts(with: $0) }
    }

    /// A slash within a word (`s/he`, `I/O`) begins no path.
    private static func begins(after byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: ")"), UInt8(ascii: "%"):
            false
        default: true
        }
    }

    private static func isOfPath(_ byte: UInt8) -> Bool {
        switch byte {
        case 0...0x20, UInt8(ascii: "\""), UInt8(ascii: ","), UInt8(ascii: ";"), UInt8(ascii: ")"),
            UInt8(ascii: "("), UInt8(ascii: "]"), UInt8(ascii: "'"):
            false
        default: true
        }
    }
}
