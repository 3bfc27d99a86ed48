internal import Host
internal import Glibc
internal import Synchronization

// Ctrl-C and SIGTERM for commands that must leave something behind in order: the first one asks
// them to stop, the second one ends the program.
//
//   signal handler -> pipe -> a thread of its own -> what was registered

/// Something that is to be done when the user interrupts; see the head of this file.
package final class Interruption: Sendable {
    private let number: UInt64

    private struct State {
        var isInstalled = false
        var isAsked = false
        var lastSignal: Int32 = 0
        var next: UInt64 = 0
        var bodies: [UInt64: @Sendable () -> Void] = [:]
    }

    private static let state = Mutex(State())
    /// Where the handler writes to.
    // SAFETY: set before the handler is, and never again.
    nonisolated(unsafe) private static var writeEnd: Int32 = -1

    /// Calls `body` once when the user interrupts, at once when that has happened, until it is
    /// withdrawn.
    package static func whenAsked(_ body: @escaping @Sendable () -> Void) -> Interruption {
        let (number, isAsked) = state.withLock { state in
            if !state.isInstalled { state.isInstalled = install() }
            state.next += 1
            state.bodies[state.next] = body
            return (state.next, state.isAsked)
        }
        if isAsked { body() }
        return Interruption(number)
    }

    /// The signal that the user interrupted with; 0 when that has not happened.
    package static var lastSignal: Int32 { state.withLock { $0.lastSignal } }

    private init(_ number: UInt64) { self.number = number }

    /// It is not to be done any more.
    package func withdraw() { Self.state.withLock { _ = $0.bodies.removeValue(forKey: number) } }

    private static let signals = [SIGINT, SIGTERM, SIGHUP]

    /// False when the system has no pipe to give: then a signal ends the program as ever.
    private static func install() -> Bool {
        guard let ends = makePipe() else { return false }
        let readEnd = ends[0]
        writeEnd = ends[1]
        let thread = Thread(reading: readEnd)
        guard thread.start() else { return false }
        for number in signals {
            // A program that was told to ignore it (nohup) keeps ignoring it.
            // SAFETY: both are function addresses or small constants, and are only compared.
            var former = sigaction()
            guard sigaction(number, nil, &former) == 0,
                unsafeBitCast(former.__sigaction_handler.sa_handler, to: Int.self)
                    != unsafeBitCast(SIG_IGN, to: Int.self)
            else { continue }
            signal(number) { number in
                // The second one ends the program.
                signal(number, SIG_DFL)
                var byte = UInt8(truncatingIfNeeded: number)
                _ = write(Interruption.writeEnd, &byte, 1)
            }
        }
        return true
    }

    private static func asked(_ number: Int32) {
        let bodies = state.withLock { state in
            state.isAsked = true
            state.lastSignal = number
            return Array(state.bodies.values)
        }
        for body in bodies { body() }
    }

    /// The thread that waits for the handler.
    private final class Thread: Sendable {
        private let readEnd: Int32

        init(reading readEnd: Int32) { self.readEnd = readEnd }

        func start() -> Bool {
            do throws(HostError) {
                try ServiceThread.start("interruption", blocksSignals: false) { [self] in run() }
                return true
            } catch { return false }
        }

        private func run() {
            var byte: UInt8 = 0
            while true {
                let count = read(readEnd, &byte, 1)
                if count == 1 {
                    Interruption.asked(Int32(byte))
                } else if count == 0 || errno != EINTR {
                    return
                }
            }
        }
    }
}
