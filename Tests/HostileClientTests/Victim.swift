import Foundation
import TestSupport
import Testing

/// A service under attack, and a witness who must not notice.
struct Victim {
    static let byteCount = 8 << 20

    let service: TestService
    let origin: TestOrigin
    private let witness: NBDClient

    init(byteCount: Int = Victim.byteCount) throws {
        origin = try TestOrigin(.sparseFile, byteCount: byteCount)
        service = try TestService(attaching: ["disk": origin.path], loops: 1)
        witness = try NBDClient(service.address(), export: "disk", headers: .structured)
        try witness.write(0, [UInt8](repeating: 0xa5, count: 4096))
    }

    /// A connection that has said nothing yet.
    func connect() throws -> NBDClient { try NBDClient(service.address()) }

    /// A connection past the greeting.
    func greeted() throws -> NBDClient {
        let client = try connect()
        try client.greet()
        return client
    }

    /// A connection with the export open.
    func opened(
        _ headers: NBDClient.Headers = .structured, contexts: [String] = []
    ) throws -> NBDClient {
        try NBDClient(service.address(), export: "disk", headers: headers, contexts: contexts)
    }

    /// The witness is served as before, a new client is, and the process is the one that was
    /// started.
    func expectUnharmed(sourceLocation: SourceLocation = #_sourceLocation) throws {
        let expected = [UInt8](repeating: 0xa5, count: 4096)
        do {
            #expect(try witness.read(0, 4096) == expected, sourceLocation: sourceLocation)
            let newcomer = try opened()
            #expect(try newcomer.read(0, 4096) == expected, sourceLocation: sourceLocation)
        } catch {
            Issue.record(
                "the service does not serve any more: \(error)\n\(service.log.suffix(2000))",
                sourceLocation: sourceLocation)
            throw error
        }
    }

    /// As above where the attack may have changed the data: both are served, whatever they read.
    func expectAlive(sourceLocation: SourceLocation = #_sourceLocation) throws {
        #expect(try witness.read(0, 4096).count == 4096, sourceLocation: sourceLocation)
        #expect(try opened().read(0, 4096).count == 4096, sourceLocation: sourceLocation)
    }

    /// The most memory the service has ever used, in KiB.
    func peakKibibytes() throws -> Int { try service.statusKibibytes("VmHWM") }
}
