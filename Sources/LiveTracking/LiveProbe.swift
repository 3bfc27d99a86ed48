package import BlockModel
internal import CLiveTracking
internal import ChangeTracking
internal import Glibc

/// What this machine offers for devices in use, found out without tracking one.
package enum LiveProbe {
    /// Why no device can be tracked in use here; nil when one could be. Loads the programs,
    /// attaches nothing and gives them back. Blocks for about 100 ms.
    package static func obstacle() -> String? {
        var facts = LivePlace.kernelFacts()
        // What a good disk would add.
        facts.diskSequence = 1
        facts.hasRequests = true
        if let refusal = facts.refusal { return refusal.sentence }
        var loaded = clt_loaded()
        let failure = clt_load(&loaded)
        guard failure == 0 else { return LivePrograms.refusal(of: -failure).message }
        // SAFETY: `programs` is an array of C integers, which Swift shows as a tuple.
        let programs = withUnsafeBytes(of: loaded.programs) { Array($0.bindMemory(to: Int32.self)) }
        for descriptor in programs + [loaded.devices, loaded.in_flight, loaded.variables] {
            close(descriptor)
        }
        return nil
    }

    /// Why this block device cannot be tracked in use; nil when it could be.
    package static func obstacle(of number: DeviceNumber) -> String? {
        guard let place = LivePlace(of: number) else { return "it is not in /sys" }
        return place.facts.refusal?.sentence
    }
}
