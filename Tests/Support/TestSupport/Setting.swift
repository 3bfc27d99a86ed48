import Foundation

/// One row of the matrix that every conformance test runs over.
package struct Setting: Sendable, CustomStringConvertible {
    package let kind: OriginKind
    package let transport: TestService.Transport

    package var description: String { "\(kind), \(transport)" }

    /// Every kind of origin that can be made here, over every transport.
    package static let all: [Setting] = OriginKind.available.flatMap { kind in
        TestService.Transport.allCases.map { Setting(kind: kind, transport: $0) }
    }

    package init(kind: OriginKind, transport: TestService.Transport) {
        self.kind = kind
        self.transport = transport
    }
}

/// A service with one device, `disk`, for one test.
package struct ServedOrigin {
    package let service: TestService
    package let origin: TestOrigin
    package let transport: TestService.Transport

    package var uri: String { service.uri("disk", transport) }
    package var address: NBDAddress { service.address(transport) }

    /// Makes an origin and serves it.
    package init(_ setting: Setting, byteCount: Int, loops: Int? = nil) throws {
        origin = try TestOrigin(setting.kind, byteCount: byteCount)
        service = try TestService(attaching: ["disk": origin.path], loops: loops)
        transport = setting.transport
    }

    /// A connection of the tests' own client.
    package func client(
        _ headers: NBDClient.Headers = .structured, contexts: [String] = []
    ) throws -> NBDClient {
        try NBDClient(address, export: "disk", headers: headers, contexts: contexts)
    }
}

/// The size of the full test in `make soak`, a twentieth of it otherwise; says which.
package func scaled(_ full: Int, _ what: String, multipleOf unit: Int = 1) -> Int {
    if isSoak {
        print("\(what): full size, \(full)")
        return full
    }
    let part = max(unit, (full / 20 + unit - 1) / unit * unit)
    print("\(what): a twentieth, \(part) of \(full); STILLPOINT_SOAK=1 runs all")
    return part
}
