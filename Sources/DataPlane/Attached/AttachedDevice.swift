package import BlockModel
package import ChangeTracking
package import Devices
package import Generations
package import LiveTracking
package import OriginIO
package import Origins
package import RingIO
internal import Synchronization

/// An origin attached to the service, as the control plane sees it.
package final class AttachedDevice: Sendable {
    /// The loop that serves it.
    package let loop: LoopThread
    /// What exports submit requests to.
    package let target: LoopConfined<BlockTarget>
    let device: LoopConfined<Device>
    /// The origin as the kernel identifies it: difference storage may not stand on it.
    let foundations: Set<Foundation>
    /// All that the origin stands on.
    let allFoundations: Set<Foundation>
    /// Why the attach began a new generation; nil: the former one was continued.
    package let newGenerationReason: NewGenerationReason?
    /// Of a device that is tracked in use: its marks.
    let live: LiveWindow?
    let origin: OpenedOrigin
    private let request: TrackingRequest?
    let blocking: BlockingPool
    private let size: Mutex<UInt64>
    /// Looks at the origin's size so far, and the one begun last.
    let lookCount = Mutex<UInt64>(0)
    let lastLook = Mutex<Task<Result<DeviceResize, ResizeObstacle>, Never>?>(nil)
    /// A look at what the origin's path names is under way.
    let isNameLookedAt = Mutex(false)

    private init(
        _ origin: OpenedOrigin, _ generation: OpenedGeneration, loop: LoopThread,
        device: LoopConfined<Device>, blocking: BlockingPool
    ) {
        self.origin = origin
        newGenerationReason = generation.reason
        request = generation.request
        allFoundations = origin.allFoundations
        self.loop = loop
        self.device = device
        self.blocking = blocking
        foundations = origin.foundations
        size = Mutex(origin.facts.size)
        target = device.map { $0 }
        live = origin.live
    }

    /// What was found out about the origin, with the size that it has now.
    package var facts: OriginFacts {
        var facts = origin.facts
        facts.size = size.withLock { $0 }
        return facts
    }

    // MARK: Attach

    /// Opens an origin for exclusive use and brings it on its loop. `sectorBytes`: 512 or 4096,
    /// nil for what the origin says (files: 512). `tracking`: where the generation of its changes
    /// is kept; nil when nobody will ask for it. `live`: it stays in use, and this tracks its
    /// writes.
    /// Waits at most `limitNanoseconds` for what `path` names. `access` makes the way to its disk.
    package static func attach(
        path: String, isReadOnly: Bool, sectorBytes: UInt32?, tracking: TrackingRequest? = nil,
        live: LiveTracker? = nil, on loop: LoopThread, blocking: BlockingPool,
        limitNanoseconds: UInt64 = BlockingPool.pathNanosecondsMax,
        accessing access:
            @escaping @Sendable (OpenedOrigin, EventLoop, BlockingPool) ->
            OriginAccess = { DescriptorAccess($0, loop: $1, blocking: $2) }
    ) async throws(AttachError) -> AttachedDevice {
        let origin = try await blocking.runOnPath(
            .paths, "origin \(path)", limitNanoseconds: limitNanoseconds,
            whenLate: { (origin: OpenedOrigin) in origin.giveUp() },
            { () throws(AttachError) in
                try OriginOpener.open(path, isReadOnly, sectorBytes, live)
            })
        await tracking?.writing()
        defer { tracking?.wrote() }
        let generation = try await openGeneration(
            of: origin, tracking, blocking, limitNanoseconds: limitNanoseconds)
        let device = await loop.mailbox.run { loop -> LoopConfined<Device>? in
            let device = Device(
                access(origin, loop, blocking), generation, loop: loop, blocking: blocking)
            return device.register() ? LoopConfined(device, on: loop) : nil
        }
        guard let device, let device else {
            await end(
                origin, generation.header, generation.memory, tracking, nil, blocking,
                isWriting: true)
            if let live = origin.live { await blocking.run { live.end() } }
            throw AttachError(
                .busy, "origin \(path): the loop has as many devices as it may; detach one")
        }
        let attached = AttachedDevice(
            origin, generation, loop: loop, device: device, blocking: blocking)
        await attached.beginTaking()
        return attached
    }

    /// Finds out what is known of the origin's changes and puts the map in force that those to come
    /// are marked in. Closes the origin where that fails.
    private static func openGeneration(
        of origin: OpenedOrigin, _ tracking: TrackingRequest?, _ blocking: BlockingPool,
        limitNanoseconds: UInt64
    ) async throws(AttachError) -> OpenedGeneration {
        let path = origin.facts.path
        let outcome = await blocking.run(
            .origins, limitNanoseconds: limitNanoseconds,
            whenLate: { (late: Result<OpenedGeneration, AttachError>) in
                guard case .success(let generation) = late else { return }
                generation.abandon()
                origin.giveUp()
            },
            { () -> Result<OpenedGeneration, AttachError> in
                do throws(AttachError) {
                    return .success(try OpenedGeneration.open(origin, tracking))
                } catch {
                    origin.giveUp()
                    return .failure(error)
                }
            })
        let opened: OpenedGeneration
        switch outcome {
        case .done(let result): opened = try result.get()
        case .late: throw AttachError.late("origin \(path)", limitNanoseconds)
        case .refused:
            origin.giveUp()
            throw AttachError(.busy, "origin \(path): too many operations wait; try again")
        }
        if let watched = opened.watched(origin) { await tracking?.watch(watched) }
        return try await onPool(blocking, path) { () throws(AttachError) in
            var generation = opened
            do throws(AttachError) {
                try generation.admit()
            } catch {
                generation.abandon()
                origin.giveUp()
                throw error
            }
            return generation
        }
    }

    /// Runs `body` on the pool.
    private static func onPool<Value: Sendable>(
        _ blocking: BlockingPool, _ path: String,
        _ body: @escaping @Sendable () throws(AttachError) -> Value
    ) async throws(AttachError) -> Value {
        let outcome = await blocking.run { () -> Result<Value, AttachError> in
            do throws(AttachError) { return .success(try body()) } catch { return .failure(error) }
        }
        guard let outcome else {
            throw AttachError(.busy, "origin \(path): too many operations wait; try again")
        }
        return try outcome.get()
    }

    // MARK: Show

    /// Users at this moment: connections and block attachments.
    package func userCount() async -> Int {
        let device = device
        return await loop.mailbox.run { device.get(on: $0).userCount } ?? 0
    }

    /// How a device stands.
    package struct Progress: Sendable {
        /// What it has done since it was attached.
        package var counters: DeviceCounters
        /// The generation its changes belong to, and what became of the one before.
        package var generation: Generation
        package var generationStatus: GenerationStatus
        /// In which changes are marked now.
        package var epoch: Epoch
        /// Bytes of the device when the generation began.
        package var firstSize: UInt64
        /// Seconds since 1970; 0 when the generation has no cut yet.
        package var lastCutSeconds: UInt64
        /// Changes are not known now; a new generation follows.
        package var isTrackingLost: Bool
    }

    /// How the device stands; nil when its loop does not answer.
    package func progress() async -> Progress? {
        let device = device
        return await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            let header = device.running.header
            return Progress(
                counters: device.currentCounters, generation: device.generation,
                generationStatus: device.running.status, epoch: device.engine.epoch,
                firstSize: header.firstSize, lastCutSeconds: header.lastCutSeconds,
                isTrackingLost: device.engine.isTrackingLost)
        }
    }

    /// What the device and its images did, for metrics; nil when its loop does not answer.
    package func activity() async -> DeviceActivity? {
        let device = device
        return await loop.mailbox.run { device.get(on: $0).activity }
    }

    /// Whether the page of the change map that was missing when tracking ended can be allocated
    /// now.
    package func canTrackAgain() async -> Bool {
        let device = device
        let found = await loop.mailbox.run { loop in
            (device.get(on: loop).running.memory, device.get(on: loop).lossPage)
        }
        guard let (memory, page) = found else { return false }
        return await blocking.run(.pages) { memory.reserve(page: page) } ?? false
    }

    /// The generation that queries can name now; nil when it was lost.
    package func currentGeneration() async -> Generation? {
        let device = device
        return await loop.mailbox.run { loop in
            let device = device.get(on: loop)
            return device.engine.isTrackingLost ? nil : device.generation
        } ?? nil
    }

    // MARK: Resize

    /// A cut took another size over.
    func wasResized(to size: UInt64) { self.size.withLock { $0 = size } }

    // MARK: Detach

    /// Closes the exports' sessions, waits for requests under way, flushes (unless read-only),
    /// saves the change map and closes the origin. No snapshot of it may be left. Returns the
    /// fault of that flush. Once only.
    package func detach() async -> Fault? {
        let device = device
        let mailbox = loop.mailbox
        let remains = await withCheckedContinuation { continuation in
            let accepted = mailbox.postWhenRoom { loop in
                let device = device.get(on: loop)
                device.close { fault in
                    continuation.resume(
                        returning: (fault, device.running.header, device.running.memory))
                }
            }
            precondition(accepted, "a loop does not stop while it has devices")
        }
        await Self.end(origin, remains.1, remains.2, request, remains.0, blocking)
        return remains.0
    }

    /// Saves the map and closes the origin. `isWriting`: the caller may write already.
    private static func end(
        _ origin: OpenedOrigin, _ header: MapFileHeader, _ memory: ChangeMapMemory,
        _ request: TrackingRequest?, _ fault: Fault?, _ blocking: BlockingPool,
        isWriting: Bool = false
    ) async {
        if !isWriting { await request?.writing() }
        defer { if !isWriting { request?.wrote() } }
        let work = { @Sendable in
            if let request,
                let failure = OpenedGeneration.end(
                    header, memory, request, origin: origin, fault: fault)
            {
                request.notify(.mapNotSaved(failure))
            }
            origin.close()
        }
        // This must be done here. Only a pool that has ended refuses it.
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let accepted = blocking.require(.origins) {
                work()
                continuation.resume()
            }
            precondition(accepted, "the pool does not end while devices are attached")
        }
    }
}
