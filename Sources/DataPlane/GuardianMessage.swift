package import BlockModel

// What service and guardian say to each other: one packet each, fields of text with a zero byte
// between them.

/// A message from the service to its guardian. Each is answered with `accepted` or a reason.
package enum GuardianMessage: Equatable, Sendable {
    /// Record this origin when I die.
    case watch(WatchedOrigin)
    /// The device was detached: nothing is to be recorded.
    case forget(ObjectName)
    /// I end cleanly: go.
    case dismiss

    /// The answer to what was done.
    package static let accepted = "accepted"
    /// Most bytes of a packet: three paths and some more.
    package static let byteCountMax = 16384

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
            case .dismiss: ["dismiss"]
            }
        return Array(fields.joined(separator: "\0").utf8)
    }

    /// Reads a packet; nil when it is none of these.
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
        case ("dismiss", 1): self = .dismiss
        case (_, _): return nil
        }
    }
}
