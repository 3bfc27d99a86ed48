import Foundation
import TestSupport
import Testing

private let canMakeSkeleton =
    (Command.exists("bpftool") || FileManager.default.fileExists(atPath: "/usr/sbin/bpftool"))
    && FileManager.default.fileExists(atPath: "/usr/include/bpf/bpf_helpers.h")
    && FileManager.default.fileExists(atPath: "Scripts/live-skeleton")

@Suite struct `The header with the BPF programs` {
    @Test(.enabled(if: canMakeSkeleton, "bpftool or libbpf-dev is missing"))
    func `is what their source gives`() throws {
        try Command.check("Scripts/live-skeleton", ["--check"])
    }
}
