import Foundation
import Glibc
import TestSupport
import Testing

/// The Debian package, in a fresh Debian 12 without Swift.
@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: canUseLoopDevices && canUseFUSE, "it needs root, loop devices and FUSE"),
    .enabled(
        if: ["debootstrap", "dpkg-shlibdeps", "objcopy"].allSatisfy(Command.exists),
        "needs Debian's debootstrap, dpkg-dev and binutils"))
struct `The Debian package` {
    @Test func `installs in Debian 12, runs the README's first round there and is purged`() throws {
        let place = try TemporaryDirectory()
        let release = (TestService.binary as NSString).deletingLastPathComponent
        let build = (release as NSString).deletingLastPathComponent
        let scripts = PythonTools.repository + "/Scripts"
        try Command.check("\(scripts)/package", ["deb", build, "0.0.1", place.root])
        let architecture = try Command.check("dpkg", ["--print-architecture"])
            .trimmingCharacters(in: .newlines)
        let outcome = try Command.run(
            "\(scripts)/test-package",
            [place.path("stillpoint_0.0.1_\(architecture).deb"), "bookworm", "install"])
        // Without a mirror there is no Debian to install into.
        if outcome.status == 77 {
            try Test.cancel("\(outcome.diagnostics)")
        }
        #expect(outcome.status == 0, "\(outcome.output)\(outcome.diagnostics)")
        #expect(outcome.output.contains("bookworm passed"))
    }
}
