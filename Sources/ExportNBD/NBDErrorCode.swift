package import BlockModel

/// Errors as the protocol numbers them.
package enum NBDErrorCode: UInt32, Sendable {
    case notPermitted = 1
    case inputOutput = 5
    case noMemory = 12
    case invalid = 22
    case noSpace = 28
    case overflow = 75
    case notSupported = 95
    case shutdown = 108

    /// The protocol's word for a fault. ENOTSUP is reserved for zeroing that is not fast; other
    /// requests that a device cannot do are invalid.
    package init(_ fault: Fault, isFastZero: Bool) {
        switch fault.errnoValue {
        case 1, 13, 30: self = .notPermitted  // EPERM, EACCES, EROFS
        case 12: self = .noMemory
        case 22: self = .invalid
        case 27, 28, 122: self = .noSpace  // EFBIG, ENOSPC, EDQUOT
        case 75: self = .overflow
        case 95: self = isFastZero ? .notSupported : .invalid
        case 108: self = .shutdown
        default: self = .inputOutput
        }
    }

    /// A sentence for people, sent along in structured replies.
    package var message: StaticString {
        switch self {
        case .notPermitted: "this export is read-only"
        case .inputOutput: "the device failed"
        case .noMemory: "a limit of the service was reached"
        case .invalid: "the request makes no sense for this export"
        case .noSpace: "no space, or beyond the end of the export"
        case .overflow: "too large for one reply"
        case .notSupported: "zeroing would not be fast here"
        case .shutdown: "the service is shutting down"
        }
    }
}
