/// Why the service refused or failed, for people and scripts: a code that decides the HTTP status
/// and the exit status, and a message that names the object, the reason and the way out.
package struct ControlError: Error, Equatable, Sendable, CustomStringConvertible {
    package let code: Code
    /// Which error of that kind it is, where a script may want to tell them apart.
    package let reason: Reason?
    package let message: String
    /// Further facts for scripts.
    package let details: [String: String]

    package init(_ code: Code, _ message: String, details: [String: String] = [:]) {
        self.code = code
        reason = nil
        self.message = message
        self.details = details
    }

    /// An error that has a name of its own; its kind follows.
    package init(_ reason: Reason, _ message: String, details: [String: String] = [:]) {
        code = reason.code
        self.reason = reason
        self.message = message
        self.details = details
    }

    /// What JSON calls it: the reason where there is one, else the code.
    package var name: String { reason?.rawValue ?? code.name }

    package var description: String { message }

    /// What kind of error it is. Callers must bear codes they do not know.
    package struct Code: Hashable, Sendable {
        private enum Value: String, CaseIterable {
            case invalid, notFound = "not_found", busy, unsuitable, failed
            case notAllowed = "not_allowed", tooLarge = "too_large", tooSlow = "too_slow"
            case noSpace = "no_space", generationUnknown = "history_unknown", corrupted, changed
            case unauthorized, forbidden
        }

        private let value: Value

        /// The request makes no sense.
        package static let invalid = Code(value: .invalid)
        /// No object of that name.
        package static let notFound = Code(value: .notFound)
        /// The path is there, but not for this method.
        package static let notAllowed = Code(value: .notAllowed)
        /// In use, or in a state that conflicts.
        package static let busy = Code(value: .busy)
        /// The object can never be used like this.
        package static let unsuitable = Code(value: .unsuitable)
        /// The system refused.
        package static let failed = Code(value: .failed)
        /// The request's body is larger than any request needs.
        package static let tooLarge = Code(value: .tooLarge)
        /// The request did not arrive in time.
        package static let tooSlow = Code(value: .tooSlow)

        /// There is no room for what was asked for.
        package static let noSpace = Code(value: .noSpace)
        /// What changed is not known: a full backup is due.
        package static let generationUnknown = Code(value: .generationUnknown)
        /// The snapshot's image lost data.
        package static let corrupted = Code(value: .corrupted)
        /// A page of an answer that other pages do not belong to any more: begin again.
        package static let changed = Code(value: .changed)

        /// The token that the page asks for is missing or wrong.
        package static let unauthorized = Code(value: .unauthorized)
        /// Not allowed for this client, or not from its address.
        package static let forbidden = Code(value: .forbidden)

        private init(value: Value) { self.value = value }

        /// The code of that name in JSON; what a newer service says and this program does not
        /// know counts as `failed`.
        package init(name: String) { value = Value(rawValue: name) ?? .failed }

        /// The name in JSON.
        package var name: String { value.rawValue }

        /// All codes, by name.
        package static var names: [String] { Value.allCases.map(\.rawValue) }

        /// The status of an HTTP answer with this error.
        package var httpStatus: Int {
            switch value {
            case .invalid: 400
            case .unauthorized: 401
            case .forbidden: 403
            case .notFound: 404
            case .notAllowed: 405
            case .tooSlow: 408
            case .busy, .corrupted: 409
            case .generationUnknown, .changed: 410
            case .tooLarge: 413
            case .unsuitable: 422
            case .failed: 500
            case .noSpace: 507
            }
        }

        /// The exit status of a command that fails with this error.
        package var exitStatus: ExitStatus {
            switch value {
            case .invalid: .wrongUsage
            case .notFound: .notFound
            case .busy, .changed: .busy
            case .generationUnknown: .generationUnknown
            case .corrupted: .corrupted
            case .unsuitable, .failed, .notAllowed, .tooLarge, .tooSlow, .noSpace, .unauthorized,
                .forbidden:
                .failed
            }
        }
    }
}

extension ControlError {
    /// An error with a name of its own, finer than its code. Callers must bear names they do not
    /// know.
    package enum Reason: String, CaseIterable, Sendable {
        case noSuchDevice = "no_such_device"
        case noSuchSnapshot = "no_such_snapshot"
        case noSuchCheckpoint = "no_such_checkpoint"
        /// What `since` names is not a cut of the device that is remembered.
        case noSuchBase = "no_such_base"
        case noSuchBlock = "no_such_block"
        /// A path on the service's machine.
        case noSuchFile = "no_such_file"
        /// The device is remembered, but could not be attached.
        case deviceMissing = "device_missing"
        case notMounted = "not_mounted"
        case nameTaken = "name_taken"
        /// Others use it; they can be asked to end, or `force` ends them.
        case inUse = "in_use"
        /// There are as many as there may be.
        case limitReached = "limit_reached"
        /// The snapshot is not held: not taken yet, or gone.
        case notHeld = "not_held"
        case stopping
        /// The service was restarted, and renumbers its events.
        case eventsRestarted = "events_restarted"

        /// The kind of error it is.
        package var code: Code {
            switch self {
            case .noSuchDevice, .noSuchSnapshot, .noSuchCheckpoint, .noSuchBase, .noSuchBlock,
                .noSuchFile, .deviceMissing, .notMounted:
                .notFound
            case .nameTaken, .inUse, .limitReached, .notHeld, .stopping: .busy
            case .eventsRestarted: .changed
            }
        }
    }
}

/// How a command ends; the numbers are a contract with scripts.
package enum ExitStatus: Int32, Sendable {
    case done = 0
    case failed = 1
    case wrongUsage = 2
    case notFound = 3
    case busy = 4
    case generationUnknown = 5
    case corrupted = 6
    case notReachable = 7
}
