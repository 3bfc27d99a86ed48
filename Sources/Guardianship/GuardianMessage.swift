package import BlockModel
package import Generations

// What service and guardian say to each other: one packet each, fields of text with a zero byte
// between them. A service starts its guardian from its own program, so these have no version;
// `TakeoverMessage`, which a later program speaks to the guardian of an earlier one, has.

/// A message from the service to its guardian. Each is answered with `accepted` or a reason.
package enum GuardianMessage: Equatable, Sendable {
    /// Record this origin when I die.
    case watch(WatchedOrigin)
    /// The device was detached: nothing is to be recorded.
    case forget(ObjectName)
    /// Hold the descriptor that comes with this for the next service, or, without one, note this of
    /// a device that is held. `isDrained`: nothing of it is in hand.
    case hold(UInt64, isDrained: Bool, note: [UInt8])
    /// From now on something may be in hand, or nothing any more.
    case setDrained(UInt64, Bool)
    /// The block device is gone: close its descriptor.
    case release(UInt64)
    /// All that the former guardian held is held here: the next service is to ask here.
    case adopted
    /// I end cleanly: hold what is held, else go.
    case dismiss

    /// The answer to what was done.
    package static let accepted = "accepted"
    /// The answer to `dismiss` of a guardian that stays.
    package static let holding = "holding"
    /// Most bytes of a packet: three paths and some more.
    package static let byteCountMax = 16384
    /// Most bytes of a note.
    package static let noteByteCountMax = HeldDevices.noteByteCountMax

    /// The packet.
    package var bytes: [UInt8] {
        let fields: [String] =
            switch self {
            case .watch(let origin):
                [
                    "watch", origin.name.text, origin.path, origin.isReadOnly ? "ro" : "rw",
                    origin.mapPath, origin.instance.description,
                ]
            case .forget(let name): ["forget", name.text]
            case .hold(let key, let isDrained, let note):
                [
                    "hold", "\(key)", isDrained ? "drained" : "in-hand",
                    String(decoding: note, as: UTF8.self),
                ]
            case .setDrained(let key, let isDrained):
                [isDrained ? "drained" : "in-hand", "\(key)"]
            case .release(let key): ["release", "\(key)"]
            case .adopted: ["adopted"]
            case .dismiss: ["dismiss"]
            }
        return Array(fields.joined(separator: "\0").utf8)
    }

    /// Reads a packet; nil when it is not one of these.
    package init?(_ packet: [UInt8]) {
        let fields = String(decoding: packet, as: UTF8.self)
            .split(separator: "\0", omittingEmptySubsequences: false).map(String.init)
        switch (fields.first, fields.count) {
        case ("watch", 6):
            guard let name = ObjectName(fields[1]), let instance = UniqueID(fields[5]) else {
                return nil
            }
            self = .watch(
                WatchedOrigin(
                    name: name, path: fields[2], isReadOnly: fields[3] == "ro",
                    mapPath: fields[4], instance: instance))
        case ("forget", 2):
            guard let name = ObjectName(fields[1]) else { return nil }
            self = .forget(name)
        case ("hold", 4):
            guard let key = UInt64(fields[1]) else { return nil }
            self = .hold(key, isDrained: fields[2] == "drained", note: Array(fields[3].utf8))
        case ("drained", 2), ("in-hand", 2):
            guard let key = UInt64(fields[1]) else { return nil }
            self = .setDrained(key, fields[0] == "drained")
        case ("release", 2):
            guard let key = UInt64(fields[1]) else { return nil }
            self = .release(key)
        case ("adopted", 1): self = .adopted
        case ("dismiss", 1): self = .dismiss
        case (_, _): return nil
        }
    }
}
