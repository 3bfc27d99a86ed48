import CTestSupport
import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `stillpoint top` {
    /// Writes to a device until the object goes.
    private final class Load {
        private let isOver = Flag()
        private let writer: Background<Void>

        init(_ harness: PageHarness, _ device: String) throws {
            let client = try NBDClient(.unix(path: harness.service.socketPath), export: device)
            let isOver = isOver
            writer = Background {
                while !isOver.isSet { try client.write(0, [UInt8](repeating: 1, count: 8192)) }
            }
        }

        func end() throws {
            isOver.set()
            try writer.value()
        }
    }

    @Test func `prints rates once, as text and as JSON`() throws {
        let harness = try PageHarness()
        for name in ["busy", "idle"] { try harness.attach(name) }
        try harness.done(
            "snapshot", "create", "--device", "busy", "--name", "s1", "--storage", "memory:8M")
        let load = try Load(harness, "busy")
        let text = try harness.done("top", "--once", "--interval", "1")
        let json = try harness.done("top", "--json", "--interval", "1")
        try load.end()
        let lines = text.split(separator: "\n")
        #expect(lines[0].hasPrefix("2 device(s), reading -, writing "))
        #expect(lines[2].hasPrefix("busy ") && lines[2].contains("iB/s"), "\(text)")
        #expect(lines[3].hasPrefix("idle "))
        #expect(text.contains("s1 ") && text.contains("held"))
        let document = try JSONSerialization.jsonObject(with: Data(json.utf8)) as? [String: Any]
        let devices = try #require(document?["devices"] as? [[String: Any]])
        let busy = try #require(devices.first { $0["name"] as? String == "busy" })
        let writes = try #require(busy["writes"] as? [String: Any])
        let (rate, bytes) = (writes["per_second"] as? Double, writes["bytes_per_second"] as? Double)
        #expect((rate ?? 0) > 0 && abs((bytes ?? 0) - 8192 * (rate ?? 0)) < 1)
        #expect((busy["reads"] as? [String: Any])?["latency_seconds"] is NSNull)
        #expect(!text.contains("\u{1B}"), "no control characters for a pipe")
        let bad = try Command.run(
            TestService.binary, ["top", "--interval", "0", "--control", "/nowhere"])
        #expect(bad.status == 2)
        let none = try Command.run(TestService.binary, ["top", "--control", "/nowhere/x"])
        #expect(none.status == 7)
    }

    /// What `script` wrote of a terminal's screen.
    struct Screen {
        let file: String

        /// Nothing was shown before the file is there.
        var text: String { (try? String(contentsOfFile: file, encoding: .utf8)) ?? "" }

        /// Waits until the words were shown `times` times.
        func wait(_ words: String, times: Int) throws {
            let end = monotonicSeconds() + 60
            while text.components(separatedBy: words).count <= times {
                guard monotonicSeconds() < end else { throw TestFailure(text) }
                _ = poll(nil, 0, 50)
            }
        }
    }

    @Test(
        .enabled(if: Command.exists("script"), "needs script (util-linux)"),
        arguments: ["q", "signal"])
    func `refreshes a terminal in place and leaves it as it was`(ending: String) throws {
        let harness = try PageHarness()
        try harness.attach("busy")
        let load = try Load(harness, "busy")
        defer { try? load.end() }
        let screen = Screen(file: harness.service.directory.path("shown"))
        // A terminal of its own, whose settings are told before and after.
        let command =
            "stty -g; \(TestService.binary) top --interval 1 --control \(harness.service.controlPath);"
            + " echo ended $?; stty -g"
        let terminal = try ChildProcess(
            "script", ["-q", "-f", "-c", command, screen.file], withInput: true)
        try screen.wait("DEVICE ", times: 2)
        #expect(screen.text.contains("\u{1B}[?1049h"))
        if ending == "q" {
            let input = try #require(terminal.input)
            #expect(write(input, "q", 1) == 1)
        } else {
            let own = try #require(
                try FileManager.default.contentsOfDirectory(atPath: "/proc").compactMap {
                    pid_t($0)
                }
                .first { id in
                    let words = try? kernelText("/proc/\(id)/cmdline").split(separator: "\0")
                    return words?.first.map(String.init) == TestService.binary
                        && words?.contains(Substring(harness.service.controlPath)) == true
                        && words?.contains("top") == true
                })
            #expect(kill(own, SIGTERM) == 0)
        }
        try screen.wait("ended 0", times: 1)
        terminal.closeInput()
        try terminal.wait(deadline: 60)
        let all = screen.text
        let back = try #require(all.range(of: "\u{1B}[?25h\u{1B}[?1049l"))
        #expect(!all[back.upperBound...].contains("DEVICE"))
        let settings = all.split(whereSeparator: \.isNewline).filter {
            $0.contains(":") && !$0.contains(" ")
        }
        #expect(settings.count == 2 && settings.first == settings.last, "\(settings)")
    }

    @Test(.enabled(if: Command.exists("script"), "needs script (util-linux)"))
    func `gives the screen back while it is suspended`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let screen = Screen(file: harness.service.directory.path("shown"))
        // A shell with job control, which goes on when its command is stopped.
        let command =
            "set -m; stty -g; \(TestService.binary) top --interval 1 --control "
            + "\(harness.service.controlPath); echo suspended $?; stty -g; fg; echo ended $?; stty -g"
        let terminal = try ChildProcess(
            "script", ["-q", "-f", "-c", command, screen.file], withInput: true)
        let input = try #require(terminal.input)
        try screen.wait("DEVICE ", times: 1)
        #expect(write(input, "\u{1A}", 1) == 1)
        // With the status of a command that was stopped.
        try screen.wait("suspended 1", times: 1)
        try screen.wait("\u{1B}[?1049h", times: 2)
        let before = screen.text.components(separatedBy: "suspended 1")
        #expect(before[0].contains("\u{1B}[?25h\u{1B}[?1049l"))
        try screen.wait("DEVICE ", times: before[0].components(separatedBy: "DEVICE ").count)
        #expect(write(input, "q", 1) == 1)
        try screen.wait("ended 0", times: 1)
        terminal.closeInput()
        try terminal.wait(deadline: 60)
        let settings = screen.text.split(whereSeparator: \.isNewline).filter {
            $0.contains(":") && !$0.contains(" ")
        }
        #expect(settings.count == 3 && Set(settings).count == 1, "\(settings)")
    }
}
