package import BlockModel
internal import CLinux
internal import Glibc
internal import Origins
internal import RingIO

// Looks at the origin of an attached device: how large it is, and whether its path still names it.
//
// Invariants
// - The sizes that an origin is found to have are numbered in the order in which they were seen,
//   one look at a time: a cut never takes over one that was seen before another which was taken
//   over.

/// What the path of an attached origin names now.
package enum OriginName: String, Sendable {
    /// The origin.
    case origin
    /// Another file or device.
    case replaced
    /// Nothing.
    case deleted
}

extension AttachedDevice {
    /// Longest time to wait for an open origin to tell its size, and for its path, nanoseconds.
    private static let lookNanosecondsMax: UInt64 = 10_000_000_000
    private static let nameNanosecondsMax: UInt64 = 1_000_000_000

    /// The size that the origin has now, and what the device needs to take it over. One look after
    /// the other.
    func findSize() async -> Result<DeviceResize, ResizeObstacle> {
        let look = lastLook.withLock { last in
            let look = Task { [before = last] in
                _ = await before?.value
                return await self.lookAtSize()
            }
            last = look
            return look
        }
        return await look.value
    }

    private func lookAtSize() async -> Result<DeviceResize, ResizeObstacle> {
        let device = device
        let (descriptor, facts) = (descriptor, facts)
        let number = lookCount.withLock { count in
            count += 1
            return count
        }
        let memory = await loop.mailbox.run { device.get(on: $0).running.memory }
        guard let memory else { return .failure(.unreadable(EBUSY)) }
        let outcome = await blocking.run(
            .origins, limitNanoseconds: Self.lookNanosecondsMax
        ) { () -> Result<DeviceResize, ResizeObstacle> in
            do throws(ResizeObstacle) {
                return .success(
                    try DeviceResize.find(descriptor, facts, number: number, memory: memory))
            } catch { return .failure(error) }
        }
        switch outcome {
        case .done(let found): return found
        case .late: return .failure(.unreadable(ETIMEDOUT))
        case .refused: return .failure(.unreadable(EBUSY))
        }
    }

    /// Bytes that the origin has now, whatever the device has.
    package func originSize() async -> Result<UInt64, ResizeObstacle> {
        await findSize().map(\.size)
    }

    /// What the path of the origin names now; nil when that cannot be found out, or a look before
    /// this one has not ended: a path that hangs holds one thread.
    package func originName() async -> OriginName? {
        let isFree = isNameLookedAt.withLock { isLookedAt in
            defer { isLookedAt = true }
            return !isLookedAt
        }
        guard isFree else { return nil }
        let (descriptor, path, isBlockDevice) = (descriptor, facts.path, facts.isBlockDevice)
        let outcome = await blocking.run(.paths, limitNanoseconds: Self.nameNanosecondsMax) {
            let name = Self.name(path, descriptor, isBlockDevice: isBlockDevice)
            self.isNameLookedAt.withLock { $0 = false }
            return name
        }
        switch outcome {
        case .done(let name): return name
        case .late: return nil
        case .refused:
            isNameLookedAt.withLock { $0 = false }
            return nil
        }
    }

    private static func name(
        _ path: String, _ descriptor: Int32, isBlockDevice: Bool
    ) -> OriginName? {
        var (named, own) = (stat(), stat())
        guard fstat(descriptor, &own) == 0 else { return nil }
        guard stat(path, &named) == 0 else {
            return errno == ENOENT || errno == ENOTDIR ? .deleted : nil
        }
        // Nodes of a block device come and go; which device they name is what counts.
        let isSame =
            isBlockDevice
            ? named.st_rdev == own.st_rdev
            : named.st_dev == own.st_dev && named.st_ino == own.st_ino
        return isSame ? .origin : .replaced
    }

    /// Why the origin is gone; nil while it is there, or when the loop does not answer.
    package func goneFault() async -> Fault? {
        let device = device
        return await loop.mailbox.run { device.get(on: $0).goneFault } ?? nil
    }
}

/// Asks whether a block device is still there, after a request of it failed. One at a time.
final class OriginCheck: BlockingWork, @unchecked Sendable {
    // `BlockingWork` says which thread touches the fields when.
    private unowned let device: Device
    private let descriptor: Int32
    private var fault: Fault?

    init(device: Device) {
        self.device = device
        descriptor = device.origin.descriptor
        super.init(mailbox: device.loop.mailbox)
    }

    override func perform() {
        var size: UInt64 = 0
        fault = nil
        if cl_block_device_size(descriptor, &size) != 0 {
            fault = Fault(errnoValue: errno)
        } else if size == 0 {
            // So the kernel marks a disk that was taken away.
            fault = .deviceGone
        }
    }

    override func finished() { device.originChecked(fault) }
}

extension Device {
    /// Shortest time between two questions to an origin whose requests fail, nanoseconds.
    private static let checkIntervalNanoseconds: UInt64 = 1_000_000_000

    /// A request of the origin failed: is it gone?
    func originFailed(_ fault: Fault) {
        guard goneFault == nil else { return }
        if fault.isOfMissingDevice { return originGone(fault) }
        // A disk that is taken away answers with other errors too.
        guard origin.facts.isBlockDevice, !isCheckingOrigin,
            loop.now >= originCheckedAt + Self.checkIntervalNanoseconds
        else { return }
        isCheckingOrigin = true
        originCheckedAt = loop.now
        let check = originCheck ?? OriginCheck(device: self)
        originCheck = check
        // The pool takes it unless it has ended.
        if !blocking.submit(.origins, work: check) { isCheckingOrigin = false }
    }

    func originChecked(_ fault: Fault?) {
        isCheckingOrigin = false
        if let fault { originGone(fault) }
        usersChanged()
    }

    /// The origin is gone: requests keep failing by themselves, and no image can be read any more.
    private func originGone(_ fault: Fault) {
        guard goneFault == nil else { return }
        goneFault = fault
        notify(.originGone(fault))
        engine.originLost(fault: fault)
        engineTouched()
    }
}

extension Fault {
    /// The kernel says so of a device that is not there (any more): ENXIO, ENODEV, ENOMEDIUM.
    fileprivate var isOfMissingDevice: Bool {
        [ENXIO, ENODEV, ENOMEDIUM].contains(errnoValue)
    }
}

extension AttachedDevice {
    /// Numbers of all that the origin stands on, itself included.
    package var underlyingDevices: Set<DeviceNumber> { MountSurvey.numbers(allFoundations) }
}
