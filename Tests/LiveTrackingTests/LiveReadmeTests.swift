import Foundation
import TestSupport
import Testing

@Suite(.serialized, .enabled(if: LiveSupport.reason == nil, LiveSupport.comment))
struct `The guide to live devices` {
    /// Runs commands as they stand, over a disk of this test in place of the machine's own.
    private static func run(
        _ commands: String, on live: MountedLive, device: String, in place: GuidePlace
    ) throws -> String {
        place.replacements.append(("\(device) / --live", "\(device) \(live.mount) --live"))
        let outcome = try place.run(place.placed(commands))
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(place.log)")
        return outcome.output
    }

    @Test func `begins in the README with a disk that is mounted`() throws {
        let live = try MountedLive(.ext4, mebibytes: 32)
        let place = try GuidePlace()
        let output = try Self.run(
            try Guide("README.md").commands("live"), on: live, device: "mine", in: place)
        #expect(output.components(separatedBy: "copied mine@").count == 3, "\(output)")
        #expect(
            try live.errors(ofCopy: place.path("backup/mine.img")) == "")
        _ = try Self.run("stillpoint device detach mine", on: live, device: "mine", in: place)
    }

    @Test func `copies and brings the copy forward`() throws {
        let live = try MountedLive(.ext4, mebibytes: 32)
        let place = try GuidePlace()
        let output = try Self.run(
            "stillpoint serve\nstillpoint device attach root / --live\n"
                + (try Guide("docs/live.md").commands("copies")),
            on: live, device: "root", in: place)
        #expect(output.components(separatedBy: "copied root@").count == 3, "\(output)")
        _ = try Self.run("stillpoint device detach root", on: live, device: "root", in: place)
    }
}
