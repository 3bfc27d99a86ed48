import ControlDocuments
import Testing

@Suite struct `Addresses to listen on` {
    @Test(arguments: [
        ("unix:/run/a.sock", ListenAddress.unix(path: "/run/a.sock")),
        ("tcp:127.0.0.1:10809", .tcp(host: "127.0.0.1", port: 10809)),
        ("tcp:[::1]:10809", .tcp(host: "::1", port: 10809)),
        ("tcp:backup.example:1", .tcp(host: "backup.example", port: 1)),
    ])
    func `are a Unix path or a host and a port`(text: String, address: ListenAddress) throws {
        let parsed = try ListenAddress(parsing: text)
        #expect(parsed == address)
        #expect(parsed.description == text)
    }

    @Test(arguments: [
        "", "unix:", "unix:relative", "tcp:", "tcp::10809", "tcp:10809", "tcp:host:0",
        "tcp:host:65536", "tcp:host:", "tcp:[]:1", "/run/a.sock",
        "unix:/" + String(repeating: "x", count: 107),
    ])
    func `are refused when they are anything else`(text: String) {
        #expect(throws: ControlError.self) { try ListenAddress(parsing: text) }
    }
}

@Suite struct `A request to attach` {
    @Test(arguments: ["", "-a", ".a", "a/b", "a b", "ä", String(repeating: "a", count: 65)])
    func `is refused under a name that breaks the rule`(name: String) {
        #expect(throws: ControlError.self) { try AttachRequest(name: name, path: "/disk.img") }
    }

    @Test(arguments: ["disk.img", "", "/a\0b", "/" + String(repeating: "x", count: 4096)])
    func `is refused with a path that is not absolute`(path: String) {
        #expect(throws: ControlError.self) { try AttachRequest(name: "vm1", path: path) }
    }

    @Test(arguments: [0, 1, 511, 1024, 8192] as [UInt32])
    func `is refused with a sector size that is not offered`(bytes: UInt32) {
        #expect(throws: ControlError.self) {
            try AttachRequest(name: "vm1", path: "/disk.img", sectorBytes: bytes)
        }
    }
}
