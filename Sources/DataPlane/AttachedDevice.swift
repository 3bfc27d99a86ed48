package import BlockModel
package import RingIO

/// An origin attached to the service, as the control plane sees it.
package final class AttachedDevice: Sendable {
    package let facts: OriginFacts
    /// The loop that serves it.
    package let loop: LoopThread
    /// What exports submit requests to.
    package let target: LoopConfined<BlockTarget>

    init(facts: OriginFacts, loop: LoopThread, target: LoopConfined<BlockTarget>) {
        self.facts = facts
        self.loop = loop
        self.target = target
    }

    /// Opens an origin for exclusive use and brings it on its loop. `sectorBytes`: 512 or 4096,
    /// nil for what the origin says (files: 512).
    package static func attach(
        path: String, isReadOnly: Bool, sectorBytes: UInt32?, on loop: LoopThread,
        blocking: BlockingPool
    ) async throws(AttachError) -> AttachedDevice {
        throw AttachError(.failed, "not there yet")
    }

    /// Users at this moment: connections and block attachments.
    package func userCount() async -> Int { 0 }

    /// What the device has done since it was attached.
    package func counters() async -> DeviceCounters { DeviceCounters() }

    /// Closes the exports' sessions, waits for requests under way, flushes (unless read-only) and
    /// closes the origin. Returns the fault of that flush. Once only.
    package func detach() async -> Fault? { nil }
}
