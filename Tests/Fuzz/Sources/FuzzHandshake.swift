import BlockModel
import RingIO
import Synchronization

@testable import ExportNBD

/// Exports that are looked up and never opened.
final class FuzzDirectory: ExportDirectory {
    private let exports: [ExportDescription]

    init(_ exports: [ExportDescription]) { self.exports = exports }

    func allExports() -> [ExportDescription] { exports }

    func export(named name: String) -> ExportDescription? {
        exports.first { $0.name == name }
    }
}

private let directory: FuzzDirectory = {
    let secret = FuzzServer.shared.export(named: "secretdisk")
    return FuzzDirectory([secret, FuzzServer.shared.export(named: "secretdisk@monday")])
}()

/// Options of any kind, in pieces of any size. Replies are well formed and bounded; before TLS,
/// where it is required, no name of an export is said; where bytes are cut changes nothing.
func fuzzHandshake(_ input: inout FuzzInput) {
    let kind = input.byte()
    let security: NBDSecurity =
        switch kind & 3 {
        case 0: .unavailable
        case 1: .offered
        default: .required
        }
    let pieceByteCount = Int(input.byte()) + 1
    let bytes = [0, 0, 0, kind >> 2 & 3] + input.rest()
    let whole = Conversation(security).fed(bytes, piecesOf: bytes.count)
    let pieces = Conversation(security).fed(bytes, piecesOf: pieceByteCount)
    // What follows STARTTLS in one piece ends the connection, in the next one it does not.
    if !whole.sawSecured, !pieces.sawSecured {
        precondition(whole.output == pieces.output, "the cutting of the bytes shows")
        precondition(whole.isOver == pieces.isOver, "the cutting of the bytes shows in the end")
    }
}

private struct Conversation {
    var negotiation: NBDNegotiation
    let security: NBDSecurity
    var output: [UInt8] = []
    var isOver = false
    var sawSecured = false

    init(_ security: NBDSecurity) {
        self.security = security
        negotiation = NBDNegotiation(directory: directory, security: security)
        precondition(negotiation.takeOutput().count == 18, "a greeting has 18 bytes")
    }

    func fed(_ bytes: [UInt8], piecesOf byteCount: Int) -> Conversation {
        var copy = self
        var position = 0
        while position < bytes.count, !copy.isOver {
            let end = min(position + byteCount, bytes.count)
            copy.feed(Array(bytes[position..<end]))
            position = end
        }
        return copy
    }

    private mutating func feed(_ bytes: [UInt8]) {
        var outcome = bytes.withUnsafeBytes { negotiation.received($0) }
        var isFirst = true
        while true {
            let answer = negotiation.takeOutput()
            output += answer
            precondition(answer.count < 2 << 20, "one answer has its bound")
            switch outcome {
            case .closed: return end()
            case .opened(let opening):
                precondition(security != .required || sawSecured, "opened without TLS")
                precondition(opening.export.name.hasPrefix("secretdisk"))
                return end()
            case .secured:
                check()
                precondition(!sawSecured, "TLS within TLS")
                sawSecured = true
                output = []
                negotiation = NBDNegotiation(under: negotiation)
                precondition(negotiation.output.isEmpty, "state survived STARTTLS")
                return
            case .more:
                if answer.isEmpty && !isFirst { return check() }
            }
            isFirst = false
            outcome = negotiation.received(UnsafeRawBufferPointer(start: nil, count: 0))
        }
    }

    private mutating func end() {
        isOver = true
    }

    private func check() {
        if security == .required, !sawSecured {
            precondition(!contains("secretdisk"), "an export is named before TLS")
        }
        var position = 0
        while position < output.count {
            precondition(output.count - position >= 20, "a reply is cut")
            let header = output[position..<position + 20]
            precondition(
                Array(header.prefix(8)) == [0, 3, 0xE8, 0x89, 4, 0x55, 0x65, 0xA9],
                "a reply has its magic")
            position += 20 + header.suffix(4).reduce(0) { $0 << 8 | Int($1) }
            precondition(position <= output.count, "a reply has the length it says")
        }
    }

    private func contains(_ text: String) -> Bool {
        let wanted = Array(text.utf8)
        guard output.count >= wanted.count else { return false }
        return (0...output.count - wanted.count).contains {
            output[$0..<$0 + wanted.count].elementsEqual(wanted)
        }
    }
}
