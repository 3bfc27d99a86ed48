import Foundation
import Glibc
import TestSupport
import Testing

/// The guide to remote access, run as it stands in a network of its own, in which the service and
/// its clients are on one host.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: isRoot && canHaveNetwork, "it needs root and network namespaces"))
struct `The guide to remote access` {
    private let place: GuidePlace
    private let guide: Guide

    init() throws {
        place = try GuidePlace(["srv", "etc/stillpoint", "etc/pki/stillpoint"])
        place.replacements += [
            ("/etc/pki/stillpoint", place.path("etc/pki/stillpoint")),
            ("/run/stillpoint/", place.path("run") + "/"),
            ("/tmp/stillpoint.sock", place.path("forwarded.sock")),
            ("backup.example", "localhost"),
        ]
        guide = try Guide("docs/remote.md")
    }

    /// Runs commands in namespaces of their own.
    private func run(
        _ commands: String, isolating namespaces: [String] = ["--net"]
    ) throws -> Command.Outcome {
        try place.run(
            place.placed("ip link set lo up\ntruncate -s 1M /srv/vm1.img\n" + commands),
            wrapper: ["unshare"] + namespaces)
    }

    @Test(
        .enabled(
            if: ["nbdinfo", "qemu-img", "openssl"].allSatisfy(Command.exists),
            "needs nbdinfo, qemu-img and openssl"))
    func `serves clients with certificates`() throws {
        let certificates = """
            new() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; chmod 600 "$1"; }
            certify() { # NAME FILE KEY
                new "$3"
                openssl req -new -key "$3" -subj "/CN=$1" -out request
                printf 'subjectAltName=DNS:%s\\nextendedKeyUsage=serverAuth,clientAuth\\n' "$1" >extensions
                openssl x509 -req -in request -CA clients.crt -CAkey ca.key -CAcreateserial -days 2 \
                    -extfile extensions -out "$2"
            }
            new ca.key
            openssl req -x509 -new -key ca.key -days 2 -subj /CN=authority -out clients.crt \
                -addext basicConstraints=critical,CA:TRUE
            certify backup.example server.crt server.key
            pki=/etc/pki/stillpoint
            certify client $pki/client-cert.pem $pki/client-key.pem
            cp clients.crt $pki/ca-cert.pem

            """
        let outcome = try run(
            certificates + (try guide.commands("certificates")) + "stat -c 'size %s' vm1.img\n")
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(place.log)")
        #expect(outcome.output.contains("export-size: 1048576"), "\(outcome.output)")
        #expect(outcome.output.contains("size 1048576\n"), "\(outcome.output)")
    }

    @Test(
        .enabled(
            if: Command.exists("nbdinfo") && Command.exists("psktool"),
            "needs nbdinfo and psktool"))
    func `serves clients with keys`() throws {
        let outcome = try run(try guide.commands("keys"))
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(place.log)")
        #expect(outcome.output.contains("export-size: 1048576"), "\(outcome.output)")
    }

    @Test(
        .enabled(
            if: access(sshServer, X_OK) == 0 && Command.exists("ssh"), "OpenSSH is not installed"))
    func `forwards the control socket over SSH`() throws {
        let files = place.path("work")
        try place.addTool(
            "ssh",
            """
            #!/bin/sh
            exec /usr/bin/ssh -i '\(files)/key' -o StrictHostKeyChecking=no \
                -o UserKnownHostsFile=/dev/null -o ExitOnForwardFailure=yes -p 2222 "$@" \
                >/dev/null 2>>'\(place.path("log"))'

            """)
        let outcome = try run(
            """
            ssh-keygen -q -t ed25519 -N '' -f key
            ssh-keygen -q -t ed25519 -N '' -f hostkey
            # sshd wants a directory in /run. Copies of mounts would keep those of other tests in use.
            awk '$2 ~ "/stillpoint-test-" {print $2}' /proc/mounts | sort -r | xargs -r umount -l
            mount -t tmpfs tmpfs /run
            mkdir -m 0755 /run/sshd
            \(sshServer) -f /dev/null -p 2222 -h '\(files)/hostkey' -o ListenAddress=127.0.0.1 \
                -o PidFile='\(place.path("sshd.pid"))' -o StrictModes=no -o UsePAM=no \
                -o AuthorizedKeysFile='\(files)/key.pub' -E '\(place.path("log"))'
            stillpoint serve

            """ + (try guide.commands("ssh"))
                + "\n", isolating: ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(place.log)")
        #expect(outcome.output.contains("stillpoint "), "\(outcome.output)")
    }
}

/// A network of one's own can be made.
private let canHaveNetwork: Bool = {
    // Where it cannot, the test is skipped, and says so.
    (try? Command.run("unshare", ["--net", "ip", "link", "set", "lo", "up"]))?.status == 0
}()

private let sshServer = "/usr/sbin/sshd"
