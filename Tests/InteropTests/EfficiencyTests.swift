import Foundation
import TestSupport
import Testing

private let script =
    URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent().appending(path: "Scripts/count-allocations").path

private let instructions =
    URL(filePath: script).deletingLastPathComponent().appending(path: "count-instructions").path

private let isReleaseBuild = !TestService.binary.contains("/debug/")

/// What a request costs besides its bytes, counted, not timed.
@Suite(
    .serialized,
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(
        if: isReleaseBuild, "a debug build allocates where an optimized one does not"),
    .enabled(if: Command.exists("fio"), "needs fio with the nbd engine"))
struct `Cost of a request` {
    @Test(.enabled(if: Command.exists("cc"), "needs a C compiler for the counting library"))
    func `the data path allocates nothing per request`() throws {
        // A tenth is run first and subtracted.
        let requests = scaled(1_100_000, "requests whose allocations are counted")
        print(try check(["--only", "allocations", "--requests", "\(requests)"]))
    }

    @Test(.enabled(if: Command.exists("strace") && isRoot, "needs strace and root"))
    func `fewer than 1.5 system calls serve a request at depth 32`() throws {
        print(try check(["--only", "calls", "--requests", "200000"]))
    }

    @Test(
        .enabled(if: Command.exists("valgrind") && Command.exists("strip"), "needs valgrind"))
    func `marking and preserving take no more instructions than stated`() throws {
        let build = URL(filePath: TestService.binary).deletingLastPathComponent().path
        let outcome = try Command.run(
            "/usr/bin/python3", [instructions, build], deadline: 1200)
        print(outcome.output)
        #expect(outcome.status == 0, "\(outcome.output)\(outcome.diagnostics)")
    }

    private func check(_ arguments: [String]) throws -> String {
        let outcome = try Command.run(
            "/usr/bin/python3", [script, TestService.binary] + arguments,
            // What measures the loops would count.
            environment: ["STILLPOINT_MEASURE_HOLDS": ""], deadline: 1200)
        #expect(outcome.status == 0, "\(outcome.output)\(outcome.diagnostics)")
        return outcome.output
    }
}
