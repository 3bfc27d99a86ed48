package import BlockModel
package import RingIO

/// An origin attached to the service, as the control plane sees it.
package final class AttachedDevice: Sendable {
    package let facts: OriginFacts
    /// The loop that serves it.
    package let loop: LoopThread
    /// What exports submit requests to.
    package let target: LoopConfined<BlockTarget>
    let device: LoopConfined<Device>
    /// The origin as the kernel identifies it: difference storage may not stand on it.
    let foundations: Set<Foundation>

    private init(
        facts: OriginFacts, foundations: Set<Foundation>, loop: LoopThread,
        device: LoopConfined<Device>
    ) {
        self.facts = facts
        self.foundations = foundations
        self.loop = loop
        self.device = device
        target = device.map { $0 }
    }

    /// Opens an origin for exclusive use and brings it on its loop. `sectorBytes`: 512 or 4096,
    /// nil for what the origin says (files: 512).
    package static func attach(
        path: String, isReadOnly: Bool, sectorBytes: UInt32?, on loop: LoopThread,
        blocking: BlockingPool
    ) async throws(AttachError) -> AttachedDevice {
        let opened = await blocking.run { () -> Result<OpenedOrigin, AttachError> in
            do throws(AttachError) {
                return .success(
                    try OriginOpener.open(
                        path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes))
            } catch { return .failure(error) }
        }
        guard let opened else {
            throw AttachError(.busy, "origin \(path): too many operations wait; try again")
        }
        let origin = try opened.get()
        let device = await loop.mailbox.run { loop -> LoopConfined<Device>? in
            guard let device = Device(origin, loop: loop, blocking: blocking),
                device.register()
            else { return nil }
            return LoopConfined(device, on: loop)
        }
        guard let device, let device else {
            origin.close()
            throw AttachError(
                .busy, "origin \(path): the loop has as many devices as it may; detach one")
        }
        return AttachedDevice(
            facts: origin.facts, foundations: origin.foundations, loop: loop, device: device)
    }

    /// Users at this moment: connections and block attachments.
    package func userCount() async -> Int {
        let device = device
        return await loop.mailbox.run { device.get(on: $0).userCount } ?? 0
    }

    /// What the device has done since it was attached, the history its changes belong to and the
    /// epoch in which they are marked now; nil when its loop does not answer.
    package func progress() async -> (
        counters: DeviceCounters, generation: Generation, epoch: Epoch
    )? {
        let device = device
        return await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            return (device.currentCounters, device.generation, device.engine.epoch)
        }
    }

    /// The history that queries can name now; nil when it was lost.
    package func history() async -> Generation? {
        let device = device
        return await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            return device.engine.isTrackingLost ? nil : device.generation
        } ?? nil
    }

    /// Closes the exports' sessions, waits for requests under way, flushes (unless read-only) and
    /// closes the origin. No snapshot of it may be left. Returns the fault of that flush. Once only.
    package func detach() async -> Fault? {
        let device = device
        let mailbox = loop.mailbox
        return await withCheckedContinuation { continuation in
            let accepted = mailbox.postWhenRoom { loop in
                device.get(on: loop).close { continuation.resume(returning: $0) }
            }
            if !accepted { continuation.resume(returning: .shutdown) }
        }
    }
}
