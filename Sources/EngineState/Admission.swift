package import BlockModel

/// The answer to an arriving request.
package enum Admission: Equatable, Sendable {
    /// Marked and preserved: give it to the origin now, then say `originWriteFinished`.
    case issue
    /// The engine holds it; effects follow.
    case taken
    /// Finished with this fault, nothing was done.
    case refused(Fault)
}

/// The answer to a finished origin request.
package enum Completion: Equatable, Sendable {
    /// Tell its owner, with the fault if there is one.
    case finish(Fault?)
    /// The engine continues with it; effects follow.
    case taken
}
