internal import BlockModel
internal import NBDWire

/// What a client is told of a request that failed.
enum NBDErrorReply {
    /// The error number for a fault.
    static func number(for fault: Fault) -> NBD.ErrorNumber {
        switch fault.errnoValue {
        case 13, 30: .notPermitted  // EACCES, EROFS
        case 27, 122: .noSpace  // EFBIG, EDQUOT
        default: NBD.ErrorNumber(rawValue: UInt32(fault.errnoValue)) ?? .inputOutput
        }
    }

    /// What people read beside the number.
    static func message(for number: NBD.ErrorNumber) -> StaticString {
        switch number {
        case .notPermitted: "the export is read-only"
        case .inputOutput: "input/output error"
        case .noMemory: "the server is short of memory"
        case .invalid: "the request is not valid for this export"
        case .noSpace: "no space, or beyond the end of the export"
        case .overflow: "too long to be answered in one piece"
        case .notSupported: "this cannot be done fast here"
        case .shutdown: "the export is going away"
        }
    }
}
