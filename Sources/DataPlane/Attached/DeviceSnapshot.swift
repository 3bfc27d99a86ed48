package import BlockModel
internal import CLinux
package import CopyOnWrite
package import Devices
internal import Glibc
internal import Host
package import Origins
package import RingIO
package import Storage

/// Difference storage of a snapshot, opened: shared by its devices.
package struct SnapshotStorage: Sendable {
    package let sources: [StorageSource]

    /// Opens everything that `requests` name, for use on behalf of `devices`: all or nothing. Each
    /// source that can grow uses at most `limit` bytes. Its opener calls `release` once,
    /// when the devices have it. `notify` is called on any thread.
    package static func open(
        _ requests: [StorageRequest], limit: UInt64, isForced: Bool, for devices: [AttachedDevice],
        blocking: BlockingPool, lane: BlockingLane = .storagePaths,
        notify: @escaping @Sendable (StorageSource.Notice, String) -> Void
    ) async throws(AttachError) -> SnapshotStorage {
        let origins = devices.flatMap(\.foundations)
        let names = requests.map { request in
            switch request {
            case .path(let path): path
            case .memory(let byteCount): "memory:\(byteCount)"
            }
        }.joined(separator: ", ")
        let result = try await blocking.runOnPath(
            lane, "storage \(names)",
            whenLate: { (late: (opened: [StorageSource], failure: AttachError?)) in
                SnapshotStorage(sources: late.opened).release()
            },
            { () -> (opened: [StorageSource], failure: AttachError?) in
                var opened: [StorageSource] = []
                do throws(AttachError) {
                    for request in requests {
                        let storage = try StorageOpener.open(request, isForced: isForced)
                        do throws(AttachError) {
                            try check(storage, liesOutside: origins)
                            let name = storage.name
                            opened.append(
                                try StorageSource.over(
                                    storage, limit: limit, deviceCount: devices.count,
                                    blocking: blocking
                                ) { notify($0, name) })
                        } catch {
                            storage.close()
                            throw error
                        }
                    }
                    return (opened, nil)
                } catch { return (opened, error) }
            })
        let storage = SnapshotStorage(sources: result.opened)
        if let failure = result.failure {
            // Once the failure is reported nothing is left of it.
            storage.release()
            await storage.closed()
            throw failure
        }
        return storage
    }

    private static func check(
        _ storage: OpenedStorage, liesOutside origins: [Foundation]
    ) throws(AttachError) {
        guard storage.foundations.isDisjoint(with: origins) else {
            throw AttachError(
                .unsuitable,
                "storage \(storage.name) lies on an origin of the snapshot: the writes it "
                    + "protects against would overwrite it; name storage on another disk")
        }
        guard !ServedBlockDevices.carry(storage.foundations) else {
            throw AttachError(
                .unsuitable,
                "storage \(storage.name) lies on a block device of this service: preserving would "
                    + "wait for writes that wait for it; name storage elsewhere")
        }
    }

    /// The opener is done with it: each source closes with the last device that uses it, at once
    /// when none does. Once only.
    package func release() {
        for source in sources {
            source.userAsksNoMore()
            source.drained()
        }
    }

    /// Returns when those sources are closed that no device uses any more.
    package func closed() async {
        for source in sources { await source.closed() }
    }
}

extension ChangesQuery {
    /// What changed since then until the cut of a snapshot, or until now.
    package init(since: Since, until: DeviceSnapshot?) {
        self.init(since: since)
        self.until = until?.part
    }

    /// The question ends with the cut of a snapshot.
    package mutating func end(at snapshot: DeviceSnapshot) { until = snapshot.part }
}

/// One device's part of a snapshot, as the control plane sees it.
package final class DeviceSnapshot: Sendable {
    package let device: AttachedDevice
    let part: LoopConfined<SnapshotPart>

    private init(device: AttachedDevice, part: LoopConfined<SnapshotPart>) {
        self.device = device
        self.part = part
    }

    /// Prepares a snapshot of `device`; the cut makes it held. `account`: a number below 1024
    /// that no other snapshot has now.
    package static func prepare(
        _ device: AttachedDevice, policy: OverflowPolicy, account: UInt16,
        storage: SnapshotStorage, notify: @escaping @Sendable (SnapshotNotice) -> Void
    ) async throws(AttachError) -> DeviceSnapshot {
        if let fault = await device.goneFault() {
            throw AttachError(
                .failed,
                "origin \(device.facts.path) is gone (\(SystemFile.errorText(fault.errnoValue))); "
                    + "when it is back, detach the device and attach it again")
        }
        let confined = device.device
        let part = await device.loop.mailbox.run { loop -> LoopConfined<SnapshotPart>? in
            confined.get(on: loop).prepareSnapshot(
                policy: policy, account: account, sources: storage.sources, notify: notify
            ).map { LoopConfined($0, on: loop) }
        }
        guard let part, let part else {
            throw AttachError(
                .busy,
                "origin \(device.facts.path) holds as many snapshots or storage sources as it "
                    + "may; destroy one first")
        }
        return DeviceSnapshot(device: device, part: part)
    }

    /// What exports of the held snapshot submit requests to.
    package func images() async -> (
        readOnly: LoopConfined<BlockTarget>, writable: LoopConfined<BlockTarget>
    )? {
        let part = part
        return await device.loop.mailbox.run { loop in
            let part = part.get(on: loop)
            guard let image = part.image, let writable = part.writableImage else { return nil }
            return (
                LoopConfined(image as BlockTarget, on: loop),
                LoopConfined(writable as BlockTarget, on: loop)
            )
        } ?? nil
    }

    /// More room; false at a bound.
    package func append(_ storage: SnapshotStorage) async -> Bool {
        let part = part
        return await device.loop.mailbox.run { loop in
            let part = part.get(on: loop)
            return storage.sources.allSatisfy { part.device.addSource($0, to: part.index) }
        } ?? false
    }

    /// What it uses now; nil when it is destroyed or its loop does not answer.
    package func report() async -> SnapshotPartReport? {
        let part = part
        return await device.loop.mailbox.run { part.get(on: $0).report } ?? nil
    }

    /// Destroys it in whatever state it is; returns when everything that is not handed over is
    /// free. Once only.
    package func destroy() async {
        let part = part
        let mailbox = device.loop.mailbox
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let accepted = mailbox.postWhenRoom { loop in
                part.get(on: loop).destroy { continuation.resume() }
            }
            precondition(accepted, "a loop does not stop while a device has snapshots")
        }
    }
}

extension SnapshotStorage {
    /// Numbers of all that its sources stand on.
    package var underlyingDevices: Set<DeviceNumber> {
        sources.reduce(into: []) { $0.formUnion(MountSurvey.numbers($1.foundations)) }
    }
}
