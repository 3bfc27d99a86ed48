package import ArgumentParser
internal import ClientSupport
internal import ControlDocuments
internal import FoundationEssentials
internal import Glibc
internal import Host

// Writers are slowed down by a helper process, which lifts the limit when its socket closes: also when the
// copy is killed.
//
//   copy ----- LimitOrder -----> helper       (one JSON document)
//        ----- "set", "lift" -->              (lines)
//        <---- what failed, or nothing ------ (a line for each)

/// What is to be limited.
struct LimitOrder: Codable, Sendable {
    var disks: [String]
    var bytesPerSecond: UInt64
}

/// `writer-limit`: the helper of a copy that slows writers down; see the head of this file.
package struct WriterLimitCommand: AsyncParsableCommand {
    /// How the command is called, and its manual page.
    package static let configuration = CommandConfiguration(
        commandName: "writer-limit",
        abstract: "A helper of `copy`; started by it alone.",
        shouldDisplay: false)

    package init() {}

    package mutating func run() async throws {
        // It ends when its command has ended, and lifts the limit before that.
        let line = try HelperSocket.ofHelper("helper", startedBy: "`stillpoint copy`")
        guard let bytes = line.receive(byteCountMax: 1 << 16) else { return }
        let order = try JSONDecoder().decode(LimitOrder.self, from: Data(bytes))
        var limits = try WriterLimits(disks: order.disks, bytesPerSecond: order.bytesPerSecond)
        defer { _ = limits.lift() }
        while let bytes = line.receive(byteCountMax: 64) {
            var answer = ""
            if bytes == Array("set".utf8) {
                do throws(ControlError) { try limits.set() } catch { answer = error.message }
            } else {
                answer = limits.lift() ?? ""
            }
            line.send(Array("\(answer)\n".utf8))
        }
    }
}
