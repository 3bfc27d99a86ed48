import Foundation

/// Commits numbers one after the other and knows the last one it was told of.
package final class Witness: @unchecked Sendable {
    // The counter is written by the thread of `run` alone and read by others under the lock.
    private let lock = NSCondition()
    private var last = 0
    private var isOver = false
    private let session: ChildProcess

    package init(_ database: Database) throws { session = try database.session() }

    /// The last number that it was told is committed.
    package var lastCommitted: Int { lock.withLock { last } }

    /// Waits until it was told of `count` more; the limit only detects hangs.
    package func waitForMore(_ count: Int) throws {
        try lock.withLock {
            let wanted = last + count
            let limit = Date(timeIntervalSinceNow: 120)
            while last < wanted {
                guard lock.wait(until: limit) else {
                    throw TestFailure("the database committed too little in 120 s")
                }
            }
        }
    }

    /// It commits no more.
    package func end() { lock.withLock { isOver = true } }

    /// Commits until the end.
    package func run() throws {
        var next = 0
        while !(lock.withLock { isOver }) {
            next += 1
            try session.writeLine("INSERT INTO seen VALUES (\(next)) RETURNING n;")
            guard try session.readLine(deadline: 120) == "\(next)" else {
                throw TestFailure("the database refused number \(next)")
            }
            lock.withLock {
                last = next
                lock.broadcast()
            }
        }
        session.closeInput()
        try session.wait(deadline: 60)
    }
}
