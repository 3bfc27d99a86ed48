/// The operations that can be made to fail or to take long.
enum Operation: String, CaseIterable {
    case read, write, fsync
}

/// What goes wrong on purpose.
struct Faults {
    private struct Failure {
        var operationsUntil: Int
        var errorNumber: Int32
        var isLasting: Bool
    }

    private var failures: [Operation: Failure] = [:]
    private var delays: [Operation: Int] = [:]

    /// Makes the `count`-th operation of that kind from now fail, or all from it on.
    mutating func fail(_ operation: Operation, at count: Int, with error: Int32, lasting: Bool) {
        failures[operation] = Failure(
            operationsUntil: count, errorNumber: error, isLasting: lasting)
    }

    /// Lets every operation of that kind take at least this long.
    mutating func delay(_ operation: Operation, milliseconds: Int) {
        delays[operation] = milliseconds
    }

    /// Everything works again.
    mutating func clear() {
        failures = [:]
        delays = [:]
    }

    func delayMilliseconds(of operation: Operation) -> Int {
        delays[operation] ?? 0
    }

    /// The error that this operation ends with, if it is to fail.
    mutating func operationArrived(_ operation: Operation) -> Int32? {
        guard var failure = failures[operation] else { return nil }
        failure.operationsUntil -= 1
        guard failure.operationsUntil <= 0 else {
            failures[operation] = failure
            return nil
        }
        failures[operation] = failure.isLasting ? failure : nil
        return failure.errorNumber
    }
}
