import Foundation
import Glibc
import TestSupport
import Testing

@Suite(
    .enabled(if: LiveSupport.reason == nil, LiveSupport.comment),
    .enabled(if: Command.exists("setpriv"), "setpriv is not installed"))
struct `A service without root` {
    /// Gives what the service writes to a user and a BPF filesystem to its runtime directory, and
    /// becomes that user with two capabilities.
    private static let wrapper = """
        for word; do [ "$last" != --runtime-dir ] || run=$word; last=$word; done
        root=${run%/*}
        mkdir -p $run/bpf $root/state && mount -t bpf bpf $run/bpf && chmod 0700 $run/bpf &&
        chown -R 65534 $root && exec setpriv --reuid=65534 --regid=65534 --groups=6 \
        --inh-caps=-all,+bpf,+perfmon --ambient-caps=-all,+bpf,+perfmon \
        --bounding-set=-all,+bpf,+perfmon "$@"
        """

    @Test func `tracks and copies live devices with CAP_BPF and CAP_PERFMON`() throws {
        let disk = try LiveDisk(byteCount: 16 << 20)
        // The group of disks may read it.
        #expect(chown(disk.path, 0, 6) == 0 && chmod(disk.path, 0o640) == 0)
        defer {
            chmod(disk.path, 0o600)
            chown(disk.path, 0, 0)
        }
        let harness = try LiveHarness(wrapper: ["/bin/sh", "-c", Self.wrapper, "sh"])
        let status = try String(
            contentsOfFile: "/proc/\(harness.service.process.processID)/status", encoding: .utf8)
        #expect(status.contains("CapEff:\t000000c000000000"))
        try harness.object("device", "attach", "d", disk.path, "--live")
        let cut = try harness.object("checkpoint", "create", "one", "--device", "d")
        #expect(cut["consistency"] as? String == "crash")
        try disk.write(block: 5, count: 2)
        #expect(try harness.changedBlocks("d", since: "one") == [5, 6])
        let copy = try TemporaryDirectory()
        try harness.done("copy", "d", copy.path("copy.img"), "--checkpoint", "two")
        #expect(
            try readFile(copy.path("copy.img"), 0..<16 << 20) == readFile(disk.file, 0..<16 << 20))
        try harness.done("device", "detach", "d")
    }
}
