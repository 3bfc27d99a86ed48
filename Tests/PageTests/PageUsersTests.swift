import Foundation
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Browser.isThere, "there is no browser"))
struct `What the page says of those who use devices` {
    private func text(_ selector: String) -> String {
        "document.querySelector('\(selector)').innerText"
    }

    @Test(
        .enabled(
            if: canUseFUSE && canUseLoopDevices && Command.exists("mkfs.ext4"),
            "needs root, /dev/fuse, /dev/loop-control and mkfs.ext4"))
    func `names NBD clients, block devices and mounts`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        let users = "[...document.querySelectorAll('#device-facts dd')].at(-1).innerText"
        try tab.wait(for: "\(users) === 'nobody'")
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
        try tab.wait(for: "\(users) === '1 NBD connection'")
        let block = try harness.done("block", "attach", "vm1")
            .trimmingCharacters(in: .newlines)
        try tab.wait(for: "\(users) === '1 NBD connection; \(block)'")
        let disk = try MountedDisk(onDevice: block)
        try tab.wait(for: "\(users).includes('mounted at \(disk.path)')")
        #expect(tab.errors() == [])
        withExtendedLifetime((client, disk)) {}
    }

    @Test func `shows how far copies are, and how they ended`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "s1", "--storage", "memory:8M")
        func tell(_ path: String, _ document: String) throws -> [String: Any] {
            let answer = try Command.check(
                "curl",
                [
                    "-sS", "--fail-with-body", "--unix-socket", harness.service.controlPath,
                    "--json", document, "http://localhost/v1/copies" + path,
                ])
            let object = try JSONSerialization.jsonObject(with: Data(answer.utf8))
            return object as? [String: Any] ?? [:]
        }
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: "document.getElementById('no-copies').checkVisibility()")
        let copy = try tell(
            "", #"{"device": "vm1", "snapshot": "s1", "target": "/backup/vm1", "bytes": 4194304}"#)
        let id = try #require(copy["id"] as? String)
        try tab.wait(for: "\(text("#copy-list")).includes('running')")
        _ = try tell("/" + id, #"{"copied_bytes": 1048576}"#)
        try tab.wait(for: "\(text("#copy-list")).includes('1 MiB of 4 MiB')")
        let progress = "document.querySelector('#copy-list progress')"
        #expect(try tab.value(progress + ".value") as? Double == 0.25)
        _ = try tell(
            "/" + id, #"{"copied_bytes": 2097152, "state": "failed", "error": "no space left"}"#)
        try tab.wait(for: "\(text("#copy-list")).includes('failed')")
        try tab.wait(for: "\(text("#copy-list")).includes('no space left')")
        #expect(try tab.value(progress + ".hidden") as? Bool == true)
        #expect(tab.errors() == [])
    }

    @Test func `shows the events of one device`() throws {
        let harness = try PageHarness()
        for name in ["vm1", "vm2"] { try harness.attach(name) }
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: "\(text("#event-list")).includes('device vm2 attached')")
        try tab.value(
            """
            (() => { const device = document.getElementById('event-device');
                device.value = 'vm1'; device.dispatchEvent(new Event('change')); })()
            """)
        try tab.wait(for: "!\(text("#event-list")).includes('vm2')")
        #expect(
            try tab.value("\(text("#event-list")).includes('device vm1 attached')") as? Bool == true
        )
        // One that comes meanwhile is filtered, too.
        try harness.done("device", "detach", "vm2")
        try harness.done("device", "detach", "vm1")
        try tab.wait(for: "\(text("#event-list")).includes('device vm1 detached')")
        #expect(try tab.value("\(text("#event-list")).includes('vm2')") as? Bool == false)
        #expect(tab.errors() == [])
    }
}
