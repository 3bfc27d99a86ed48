import BlockModel
import Glibc
import Host
import Synchronization
import Testing

@Suite struct `A program that is started` {
    /// What a shell command writes, and its exit status.
    private func output(
        of script: String, _ change: (inout ProgramStart) -> Void = { _ in }
    ) throws -> (text: String, status: Int32) {
        var ends: [Int32] = [-1, -1]
        #expect(pipe(&ends) == 0)
        defer { close(ends[0]) }
        _ = fcntl(ends[0], F_SETFD, FD_CLOEXEC)
        var start = ProgramStart("sh", ["sh", "-c", script])
        start.output = .descriptor(ends[1])
        change(&start)
        let process: pid_t
        do { process = try start.run() } catch {
            close(ends[1])
            throw error
        }
        close(ends[1])
        var bytes = [UInt8](repeating: 0, count: 4096)
        var text = ""
        while true {
            let count = read(ends[0], &bytes, bytes.count)
            guard count > 0 else { break }
            text += String(decoding: bytes[..<count], as: UTF8.self)
        }
        return (text, ProgramStart.wait(for: process))
    }

    @Test func `is found in PATH, and its exit status is reported`() throws {
        let (text, status) = try output(of: "echo hello; exit 7")
        #expect(text == "hello\n")
        #expect(status == 7)
        #expect(try output(of: "kill -9 $$").status == 137)
    }

    @Test func `that is missing is named in the error`() {
        let error = #expect(throws: HostError.self) {
            try ProgramStart("stillpoint-no-such-program", ["x"]).run()
        }
        #expect(error?.errnoValue == ENOENT)
        #expect(error?.description == "stillpoint-no-such-program: No such file or directory")
    }

    @Test func `gets the environment it was given`() throws {
        setenv("STILLPOINT_HOST_TEST", "outer", 1)
        let script = "echo ${STILLPOINT_HOST_TEST-none} ${OWN-none}"
        #expect(try output(of: script).text == "outer none\n")
        #expect(
            try output(of: script) { $0.environment = .only(["OWN=1"]) }.text == "none 1\n")
        let own = ["OWN=2", "STILLPOINT_HOST_TEST=inner"]
        #expect(
            try output(of: script) { $0.environment = .inheritedWith(own) }.text == "inner 2\n")
    }

    @Test func `gets the group, the directory and the descriptors it was given`() throws {
        let spare = fcntl(STDERR_FILENO, F_DUPFD, 9)
        defer { close(spare) }
        let script =
            "cut -d' ' -f5,6 /proc/self/stat; echo $$; pwd; [ -e /proc/self/fd/\(spare) ]; echo $?"
        let lines = try output(of: script) {
            $0.group = .ownSession
            $0.closesOthers = true
            $0.runsInRoot = true
        }.text.split(separator: "\n")
        #expect(lines.count == 4)
        guard lines.count == 4 else { return }
        #expect(lines[0] == "\(lines[1]) \(lines[1])", "leader of its group and session")
        #expect(lines[2] == "/")
        #expect(lines[3] == "1")
        let inherited = try output(of: "cut -d' ' -f5 /proc/self/stat").text
        #expect(inherited == "\(getpgrp())\n")
    }

    @Test func `has the passed descriptor as its third, and no signal blocked`() throws {
        var ends: [Int32] = [-1, -1]
        #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
        defer { for end in ends { close(end) } }
        let script = "readlink /proc/self/fd/3; grep SigBlk /proc/self/status"
        let text = Mutex<String?>(nil)
        let passed = ends[1]
        // A thread that blocks all signals must not hand that on.
        let thread = try ServiceThread.startJoinable("host-test") {
            let found = try? output(of: script) { $0.passed = passed }.text
            text.withLock { $0 = found }
        }
        thread.join()
        let found = text.withLock { $0 } ?? ""
        #expect(found.hasPrefix("socket:["))
        #expect(found.hasSuffix("SigBlk:\t0000000000000000\n"), "\(found)")
    }
}

@Suite struct `A thread of the service` {
    @Test func `has its name, and blocks signals unless it keeps its starter's mask`() throws {
        for blocks in [true, false] {
            let facts = Mutex(("", ""))
            let thread = try ServiceThread.startJoinable("host-test-name", blocksSignals: blocks) {
                let status = SystemFile.lines(of: "/proc/thread-self/status")
                facts.withLock {
                    $0 = (
                        status.first { $0.hasPrefix("Name:") } ?? "",
                        status.first { $0.hasPrefix("SigBlk:") } ?? ""
                    )
                }
            }
            let own = SystemFile.lines(of: "/proc/thread-self/status")
                .first { $0.hasPrefix("SigBlk:") }
            thread.join()
            let (name, blocked) = facts.withLock { $0 }
            #expect(name == "Name:\thost-test-name")
            if blocks {
                let bits = UInt64(blocked.split(separator: "\t").last ?? "", radix: 16) ?? 0
                // Those of SIGHUP, SIGINT and SIGTERM.
                #expect(bits & 0x4003 == 0x4003)
            } else {
                #expect(blocked == own)
            }
        }
    }
}

@Suite struct `The mounts` {
    @Test func `that this process sees include the root and /proc`() {
        let mounts = Mounts.all()
        #expect(mounts.contains { $0.name == "/" })
        #expect(mounts.contains { $0.name == "/proc" && $0.type == "proc" })
        #expect(mounts == Mounts.all(seenBy: "/proc/\(getpid())"))
        #expect(Mounts.all(seenBy: "/proc/0").isEmpty)
    }

    @Test func `are those of the lines that can be read`() {
        let text = "7 1 7:0 / /a rw - ext4 /dev/x rw\nx\n8 1 7:1 / /b rw - ext4 /dev/y rw\n"
        let mounts = MountTable.readableMounts(in: Array(text.utf8))
        #expect(mounts.map(\.name) == ["/a", "/b"])
        #expect(mounts.map(\.position) == [1, 3])
    }
}
