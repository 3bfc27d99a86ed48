package import FoundationEssentials

/// Version of the program.
package let stillpointVersion = "0.1.0"

/// Which service answers: `GET /v1`.
package struct AboutDocument: Codable, Equatable, Sendable {
    package var service: String
    package var version: String
    /// Of this interface.
    package var api: String
    /// UUID of this run of the service, as in its events.
    package var instance: String
    package var startedAt: Date
    /// Number of the newest event, of runs before this one too; 0: none yet.
    package var lastEvent: UInt64

    package init(version: String, instance: String, startedAt: Date, lastEvent: UInt64) {
        service = "stillpoint"
        self.version = version
        api = "v1"
        self.instance = instance
        self.startedAt = startedAt
        self.lastEvent = lastEvent
    }
}

/// Whether the service does what it is there for: `GET /v1/health`.
package struct HealthDocument: Codable, Equatable, Sendable {
    /// `ok`; `degraded`: something needs an operator, all that is served is served; `failing`.
    package var status: String
    package var problems: [Problem]

    /// What is wrong.
    package struct Problem: Codable, Equatable, Sendable {
        /// `device_missing`, `device_not_answering` or `snapshot_corrupted`.
        package var code: String
        /// Of the device or snapshot.
        package var name: String
        package var message: String

        package init(
            code: String, name: String, message: String
        ) {
            self.code = code
            self.name = name
            self.message = message
        }
    }

    package var isFailing: Bool { status == "failing" }

    package init(problems: [Problem]) {
        self.problems = problems
        let isFailing = problems.contains { $0.code == "device_not_answering" }
        status = problems.isEmpty ? "ok" : isFailing ? "failing" : "degraded"
    }
}
