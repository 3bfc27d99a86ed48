import Foundation
import Glibc
import TestSupport
import Testing

@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The service` {
    @Test func `keeps its sockets and directories to its user, and removes the socket`() throws {
        let harness = try ControlHarness()
        var facts = stat()
        #expect(stat(harness.service.controlPath, &facts) == 0)
        #expect(facts.st_mode & 0o777 == 0o600)
        for name in ["state", "run"] {
            #expect(stat(harness.service.directory.path(name), &facts) == 0)
            #expect(facts.st_mode & 0o777 == 0o700)
        }
        #expect(try harness.service.stop() == .exited(0))
        #expect(access(harness.service.controlPath, F_OK) != 0)
    }

    @Test func `attaches what it remembers after a clean stop and after a kill`() throws {
        let harness = try ControlHarness()
        let first = try harness.image("first.img")
        let second = try harness.image("second.img")
        #expect(try harness.command("device", "attach", "a", first).status == 0)
        #expect(try harness.command("device", "attach", "b", second, "--read-only").status == 0)
        #expect(try harness.service.stop() == .exited(0))
        try harness.service.restart()
        #expect(try harness.deviceNames() == ["a", "b"])
        #expect(try harness.command("device", "detach", "a").status == 0)
        try harness.service.process.killAndWait()
        try harness.service.restart()
        #expect(try harness.deviceNames() == ["b"])
        let device = try #require(try harness.document("device", "show", "b") as? [String: Any])
        #expect(device["read_only"] as? Bool == true)
    }

    @Test func `serves the rest when a remembered origin is gone, and says so`() throws {
        let harness = try ControlHarness()
        let first = try harness.image("first.img")
        let second = try harness.image("second.img")
        #expect(try harness.command("device", "attach", "a", first).status == 0)
        #expect(try harness.command("device", "attach", "b", second).status == 0)
        #expect(try harness.service.stop() == .exited(0))
        #expect(unlink(first) == 0)
        try harness.service.restart()
        #expect(try harness.deviceNames() == ["b"])
        let status = try #require(try harness.document("status") as? [String: Any])
        let missing = try #require(status["missing"] as? [[String: Any]])
        #expect(missing.map { $0["name"] as? String } == ["a"])
        #expect(try harness.command("device", "show", "a").status == 3)
        // Still remembered, until somebody detaches it.
        #expect(try harness.service.stop() == .exited(0))
        _ = try harness.image("first.img")
        try harness.service.restart()
        #expect(try harness.deviceNames() == ["a", "b"])
    }

    @Test func `refuses a living service's socket and state directory with 4`() throws {
        let harness = try ControlHarness()
        let directory = harness.service.directory
        let sameSocket = try Command.run(
            TestService.binary,
            [
                "serve", "--control", harness.service.controlPath, "--state-dir",
                directory.path("other"), "--nbd", "unix:" + directory.path("other.sock"),
            ])
        #expect(sameSocket.status == 4)
        #expect(sameSocket.output == "")
        #expect(sameSocket.diagnostics.contains(harness.service.controlPath))
        let sameState = try Command.run(
            TestService.binary,
            [
                "serve", "--control", directory.path("c2.sock"), "--state-dir",
                directory.path("state"), "--nbd", "unix:" + directory.path("other.sock"),
            ])
        #expect(sameState.status == 4)
        #expect(sameState.diagnostics.contains("state"))
        #expect(access(directory.path("c2.sock"), F_OK) != 0)
        #expect(try harness.command("status").status == 0)
    }

    @Test func `waits for another start on the same socket, up to a limit`() throws {
        let place = try TemporaryDirectory()
        let arguments = [
            "serve", "--control", place.path("c/control.sock"), "--state-dir", place.path("state"),
            "--runtime-dir", place.path("run"), "--loops", "1",
        ]
        #expect(mkdir(place.path("c"), 0o700) == 0)
        let other = open(place.path("c"), O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        defer { close(other) }
        for isReleased in [true, false] {
            #expect(flock(other, LOCK_EX) == 0)
            let service = try ChildProcess(
                TestService.binary, arguments, diagnostics: place.path("log"))
            let tasks = "/proc/\(service.processID)/task"
            let end = monotonicSeconds() + 60
            var isWaiting = false
            while !isWaiting, monotonicSeconds() < end {
                let threads = try FileManager.default.contentsOfDirectory(atPath: tasks)
                isWaiting = threads.contains { thread in
                    // A thread that has ended meanwhile waits for nothing.
                    let name = try? String(
                        contentsOfFile: "\(tasks)/\(thread)/comm", encoding: .utf8)
                    return name == "lock-wait\n"
                }
            }
            #expect(isWaiting)
            if isReleased { #expect(flock(other, LOCK_UN) == 0) }
            #expect(try service.readLine(deadline: 120) == (isReleased ? "ready" : nil))
            if isReleased { service.send(signal: SIGTERM) }
            #expect(try service.wait(deadline: 60) == .exited(isReleased ? 0 : 4))
        }
        let log = try String(contentsOfFile: place.path("log"), encoding: .utf8)
        #expect(log.contains("is locked by another service's start"))
    }

    @Test func `starts while the former service's guardian ends without an answer`() throws {
        let service = try TestService(attaching: [:])
        #expect(try service.stop() == .exited(0))
        let guardian = try TestSocket(
            unix: service.directory.path("state/takeover.sock"), kind: SOCK_SEQPACKET)
        let listening = guardian.descriptor
        let place = guardian.path
        let ending = Background {
            let connection = accept(listening, nil, nil)
            unlink(place)
            shutdown(listening, Int32(SHUT_RDWR))
            return close(connection)
        }
        try service.restart()
        #expect(try ending.value(within: 60) == 0)
        #expect(try service.stop() == .exited(0))
    }

    @Test func `leaves nothing behind when it cannot start`() throws {
        let directory = try TemporaryDirectory()
        let arguments = [
            "serve", "--control", directory.path("c.sock"), "--state-dir",
            directory.path("state"), "--nbd", "unix:" + directory.path("n.sock"),
        ]
        let outcome = try Command.run(
            TestService.binary, arguments + ["--attach", "vm1=" + directory.path("none.img")])
        #expect(outcome.status == 3)
        #expect(outcome.output == "")
        #expect(outcome.diagnostics.contains("none.img"))
        for name in ["c.sock", "n.sock", "state/devices.json"] {
            #expect(access(directory.path(name), F_OK) != 0, "\(name) is left")
        }
    }

    @Test(arguments: ["{", "[]", "{\"version\":9,\"devices\":[]}"])
    func `refuses a state file it does not understand, and leaves it alone`(text: String) throws {
        let directory = try TemporaryDirectory()
        #expect(mkdir(directory.path("state"), 0o700) == 0)
        let file = directory.path("state/devices.json")
        try text.write(toFile: file, atomically: false, encoding: .utf8)
        let outcome = try Command.run(
            TestService.binary,
            [
                "serve", "--control", directory.path("c.sock"), "--state-dir",
                directory.path("state"), "--nbd", "unix:" + directory.path("n.sock"),
            ])
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains(file))
        #expect(try String(contentsOfFile: file, encoding: .utf8) == text)
    }

    @Test func `attaches nothing that it cannot remember`() throws {
        let harness = try ControlHarness()
        let image = try harness.image("disk.img")
        // Where the new state file would be written, a directory is in the way.
        let obstacle = harness.service.directory.path("state/devices.json.new")
        #expect(mkdir(obstacle, 0o700) == 0)
        let outcome = try harness.command("device", "attach", "vm1", image)
        #expect(outcome.status == 1)
        #expect(outcome.diagnostics.contains("nothing was changed"))
        #expect(try harness.deviceNames().isEmpty)
        #expect(rmdir(obstacle) == 0)
        #expect(try harness.command("device", "attach", "vm1", image).status == 0)
    }

    @Test func `does without the io_uring features that a test switches off`() throws {
        let harness = try ControlHarness(
            environment: ["STILLPOINT_RING_WITHOUT": "defer-taskrun,submit-all"])
        let status = try #require(try harness.document("status") as? [String: Any])
        let loops = try #require(status["loops"] as? [[String: Any]])
        #expect(loops.count == 2)
        for loop in loops {
            let features = try #require(loop["features"] as? [String])
            #expect(!features.contains("defer-taskrun"))
            #expect(!features.contains("submit-all"))
        }
    }

    @Test func `tells the service manager when it is ready`() throws {
        let directory = try TemporaryDirectory()
        let path = directory.path("notify.sock")
        let descriptor = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
        defer { close(descriptor) }
        var name = sockaddr_un()
        name.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &name.sun_path) { $0.copyBytes(from: path.utf8) }
        let result = withUnsafeBytes(of: &name) {
            bind(
                descriptor, $0.baseAddress!.assumingMemoryBound(to: sockaddr.self),
                socklen_t($0.count))
        }
        #expect(result == 0)
        let harness = try ControlHarness(environment: ["NOTIFY_SOCKET": path])
        // It was sent before `ready` was printed, so it is there.
        var bytes = [UInt8](repeating: 0, count: 64)
        let count = recv(descriptor, &bytes, bytes.count, Int32(MSG_DONTWAIT))
        #expect(count > 0)
        #expect(String(decoding: bytes.prefix(max(0, count)), as: UTF8.self) == "READY=1")
        withExtendedLifetime(harness) {}
    }
}
