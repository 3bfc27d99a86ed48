package import BlockModel
package import Devices
internal import Glibc
package import Origins
internal import RingIO

// Looks at the origin of an attached device: how large it is, and whether its path still names it.
//
// Invariants
// - The sizes that an origin is found to have are numbered in the order in which they were seen,
//   one look at a time: a cut never takes over one that was seen before another which was taken
//   over.

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
        let (origin, former) = (origin, facts.size)
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
                    try DeviceResize.find(origin, former: former, number: number, memory: memory))
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
        let origin = origin
        let outcome = await blocking.run(.paths, limitNanoseconds: Self.nameNanosecondsMax) {
            let name = origin.currentName()
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

    /// Why the origin is gone; nil while it is there, or when the loop does not answer.
    package func goneFault() async -> Fault? {
        let device = device
        return await loop.mailbox.run { device.get(on: $0).goneFault } ?? nil
    }
}

extension AttachedDevice {
    /// Numbers of all that the origin stands on, itself included.
    package var underlyingDevices: Set<DeviceNumber> { MountSurvey.numbers(allFoundations) }
}
