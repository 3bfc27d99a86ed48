internal import CLinux
internal import Glibc

// What the next service and the guardian of the one before say to each other. The two may be of
// different programs, so this has a version:
//
//   service                                   guardian
//   stillpoint-takeover MIN MAX          ->
//                                        <-   version N COUNT      the newest that both know
//                                        <-   versions MIN MAX     none, and the guardian keeps holding
//                                        <-   device KEY STATE NOTE, with the descriptor; COUNT times
//   taken                                ->                        all of them are held elsewhere
//                                        <-   accepted             and the guardian is gone
//
// Whatever happens before `taken`, the guardian keeps holding. The first packet of each side must
// stay as it is in every later version. A note says itself which version it has.

/// The messages of a takeover; see the head of this file.
package enum TakeoverMessage: Equatable, Sendable {
    case ask(ClosedRange<Int>)
    case version(Int, count: Int)
    case versions(ClosedRange<Int>)
    case device(UInt64, isDrained: Bool, note: [UInt8])
    case taken
    case accepted

    /// Name of the guardian's socket in the state directory.
    package static let socketName = "takeover.sock"
    /// Most bytes of a packet.
    package static let byteCountMax = HeldDevices.noteByteCountMax + 128

    /// The versions that this program speaks; tests give it others.
    package static var known: ClosedRange<Int> {
        guard let text = getenv("STILLPOINT_TAKEOVER_VERSIONS") else { return 1...1 }
        let ends = String(cString: text).split(separator: "-").compactMap { Int($0) }
        guard ends.count == 2, ends[0] <= ends[1] else { return 1...1 }
        return ends[0]...ends[1]
    }

    /// The newest version that both know; nil when there is none.
    package static func common(_ one: ClosedRange<Int>, _ other: ClosedRange<Int>) -> Int? {
        let newest = min(one.upperBound, other.upperBound)
        return newest >= max(one.lowerBound, other.lowerBound) ? newest : nil
    }

    /// The packet.
    package var bytes: [UInt8] {
        let fields: [String] =
            switch self {
            case .ask(let range):
                ["stillpoint-takeover", "\(range.lowerBound)", "\(range.upperBound)"]
            case .version(let version, let count): ["version", "\(version)", "\(count)"]
            case .versions(let range):
                ["versions", "\(range.lowerBound)", "\(range.upperBound)"]
            case .device(let key, let isDrained, let note):
                [
                    "device", "\(key)", isDrained ? "drained" : "in-hand",
                    String(decoding: note, as: UTF8.self),
                ]
            case .taken: ["taken"]
            case .accepted: ["accepted"]
            }
        return Array(fields.joined(separator: "\0").utf8)
    }

    /// Reads a packet; nil when it is not one of these. Fields that a later version adds behind
    /// those known here are not looked at.
    package init?(_ packet: ArraySlice<UInt8>) {
        let fields = String(decoding: packet, as: UTF8.self)
            .split(separator: "\0", omittingEmptySubsequences: false).map(String.init)
        let numbers = fields.dropFirst().prefix(2).compactMap { Int($0) }
        switch fields.first {
        case "stillpoint-takeover":
            guard numbers.count == 2, numbers[0] <= numbers[1] else { return nil }
            self = .ask(numbers[0]...numbers[1])
        case "versions":
            guard numbers.count == 2, numbers[0] <= numbers[1] else { return nil }
            self = .versions(numbers[0]...numbers[1])
        case "version":
            guard numbers.count == 2, (0...HeldDevices.capacity).contains(numbers[1]) else {
                return nil
            }
            self = .version(numbers[0], count: numbers[1])
        case "device":
            guard fields.count >= 4, let key = UInt64(fields[1]), (1...1 << 62).contains(key) else {
                return nil
            }
            self = .device(key, isDrained: fields[2] == "drained", note: Array(fields[3].utf8))
        case "taken": self = .taken
        case "accepted": self = .accepted
        default: return nil
        }
    }
}
