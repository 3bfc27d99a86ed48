import Foundation
import Glibc
import TestSupport
import Testing

private let mebibyte = 1 << 20

/// Starting and stopping the service.
@Suite(
    .serialized, .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `Starting and stopping` {
    @Test(arguments: [OriginKind.sparseFile, .tmpfsFile])
    func `SIGTERM lets requests in flight finish and exits with 0`(kind: OriginKind) throws {
        let served = try ServedOrigin(
            Setting(kind: kind, transport: .unix), byteCount: 64 * mebibyte)
        let client = try served.client()
        let count = 64
        let bytes = [UInt8](repeating: 0x77, count: 65536)
        // One acknowledged write first, so that the connection is known to be served.
        try client.write(0, bytes)
        for index in 1..<count {
            try client.send(
                NBDRequest(
                    .write, cookie: UInt64(index), offset: UInt64(index * 65536), length: 65536,
                    payload: bytes))
        }
        served.service.process.send(signal: SIGTERM)
        var acknowledged: [Int] = [0]
        do {
            for _ in 1..<count {
                let chunk = try client.receiveChunk()
                #expect(chunk.error == nil)
                acknowledged.append(Int(chunk.cookie))
            }
        } catch is ConnectionEnded {}
        #expect(try served.service.process.wait(deadline: 120) == .exited(0))
        print("\(acknowledged.count) of \(count) writes acknowledged around SIGTERM")
        for index in acknowledged {
            #expect(try served.origin.read(index * 65536..<(index + 1) * 65536) == bytes)
        }
    }

    @Test func `clients that hold their connections do not stop the service from stopping`() throws
    {
        let served = try ServedOrigin(
            Setting(kind: .sparseFile, transport: .unix), byteCount: mebibyte)
        let connected = try NBDClient(served.address)
        let greeted = try NBDClient(served.address)
        try greeted.greet()
        let opened = try served.client()
        // Half a request, half an option: these never come to an end.
        try opened.send([0x25, 0x60, 0x95])
        try greeted.send([0x49, 0x48])
        #expect(try served.service.stop() == .exited(0))
        for client in [connected, greeted, opened] { try client.drainUntilClosed() }
    }

    @Test func `over TCP the last replies reach a client that sends on after DISC`() throws {
        let served = try ServedOrigin(
            Setting(kind: .tmpfsFile, transport: .tcp), byteCount: 4 * mebibyte)
        let client = try served.client()
        // A small window: most of the replies lie in the server's kernel when it closes.
        var size: Int32 = 32768
        setsockopt(
            client.descriptor, SOL_SOCKET, SO_RCVBUF, &size, socklen_t(MemoryLayout<Int32>.size))
        var bytes: [UInt8] = []
        for cookie in UInt64(1)...8 {
            bytes += NBDRequest(.read, cookie: cookie, length: UInt64(mebibyte))
                .encoded(.structured)
        }
        try client.send(bytes + NBDRequest(.disconnect).encoded(.structured))
        var cookies = Set([try client.receiveChunk().cookie])
        // What nobody will read: to close over it would reset the connection.
        try client.send([UInt8](repeating: 0, count: 100))
        while cookies.count < 8 { cookies.insert(try client.receiveChunk().cookie) }
        #expect(cookies == Set(1...8))
        try client.drainUntilClosed()
        #expect(try served.service.stop() == .exited(0))
    }

    @Test(.enabled(if: canUseFUSE, "FUSE needs root and /dev/fuse"))
    func `a graceful stop flushes what was acknowledged`() throws {
        let filesystem = try PowerCutFilesystem(byteCount: 8 * mebibyte)
        let service = try TestService(attaching: ["disk": filesystem.diskPath])
        let client = try NBDClient(service.address(), export: "disk")
        let bytes = [UInt8](repeating: 0x3c, count: mebibyte)
        for index in 0..<8 { try client.write(UInt64(index * mebibyte), bytes) }
        #expect(try service.stop() == .exited(0))
        try filesystem.cutPower()
        try filesystem.restorePower()
        #expect(try readFile(filesystem.diskPath, 0..<mebibyte) == bytes)
        #expect(try readFile(filesystem.diskPath, 7 * mebibyte..<8 * mebibyte) == bytes)
    }

    @Test func `sockets of a living service are refused`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        let other = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let directory = try TemporaryDirectory()
        let cases = [
            ["--control", service.controlPath, "--nbd", "unix:" + directory.path("n.sock")],
            ["--control", directory.path("c.sock"), "--nbd", "unix:" + service.socketPath],
            ["--control", directory.path("c.sock"), "--nbd", "tcp:127.0.0.1:\(service.port)"],
        ]
        for arguments in cases {
            let refusal = try TestService.refusal(
                arguments: ["serve"] + arguments + [
                    "--state-dir", directory.path("state"), "--runtime-dir", directory.path("run"),
                    "--attach", "disk=\(other.path)",
                ])
            #expect(refusal.status != 0, "\(arguments)")
            #expect(!refusal.diagnostics.isEmpty)
        }
        // The first one has not noticed.
        let client = try NBDClient(service.address(), export: "disk")
        #expect(try client.read(0, 512).count == 512)
        _ = try NBDClient(service.address(.tcp), export: "disk")
    }

    @Test func `sockets that a killed service left are replaced`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        try service.process.killAndWait()
        #expect(FileManager.default.fileExists(atPath: service.socketPath))
        try service.restart()
        let client = try NBDClient(service.address(), export: "disk")
        #expect(try client.read(0, 512).count == 512)
    }

    @Test func `the Unix socket is for its owner only`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let service = try TestService(attaching: ["disk": origin.path])
        for path in [service.socketPath, service.controlPath] {
            let attributes = try FileManager.default.attributesOfItem(atPath: path)
            #expect(attributes[.posixPermissions] as? Int == 0o600)
        }
    }

    @Test func `TCP without TLS is for loopback addresses unless plaintext is allowed`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        let open = "tcp:0.0.0.0:\(try TestService.freePort())"
        let refusal = try TestService.refusal(
            attaching: ["disk": origin.path], extraArguments: ["--nbd", open])
        #expect(refusal.status != 0)
        #expect(refusal.diagnostics.contains("--allow-plaintext"), "\(refusal.diagnostics)")
    }

    @Test func `a read-only file is served read-only or refused, never written`() throws {
        let origin = try TestOrigin(.sparseFile, byteCount: mebibyte)
        try Command.check("chmod", ["0400", origin.path])
        // Root may write all the same; the flag asked for on the command line decides.
        let service = try TestService(attaching: ["disk": origin.path])
        let client = try NBDClient(service.address(), export: "disk")
        if client.flags & NBD.TransmissionFlag.readOnly != 0 {
            let reply = try client.perform(
                NBDRequest(.write, length: 512, payload: [UInt8](repeating: 1, count: 512)))
            #expect(reply.error == NBD.ErrorNumber.notPermitted)
        } else {
            #expect(isRoot)
        }
    }
}
