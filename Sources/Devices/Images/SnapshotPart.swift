package import BlockModel
package import CopyOnWrite
package import EngineState
internal import RingIO
internal import SnapshotCore
package import Storage

/// What happens to one device's part of a snapshot while it is held.
package enum SnapshotNotice: Sendable {
    /// The image lost data: it fails from now on.
    case corrupted(Fault)
    /// What was written through the writable image is lost; the read-only image is not concerned.
    case overlayCorrupted(Fault)
}

/// How much one device's part of a snapshot uses.
package struct SnapshotPartReport: Sendable {
    package var isCorrupted: Bool
    /// Blocks preserved that take space.
    package var storedBlocks: UInt64
    /// Blocks preserved that are all zero and take none.
    package var zeroBlocks: UInt64
    package var metadataBytes: UInt64
    /// Bytes of old data read on this device since the cut in order to preserve it, for this
    /// snapshot or a newer one.
    package var copiedBytes: UInt64
    /// Preserved blocks of this device that are in memory only.
    package var unstoredBlocks: UInt64
}

/// One device's part of a snapshot, on the device's loop.
package final class SnapshotPart {
    package let device: Device
    package let index: SnapshotIndex
    private let notify: @Sendable (SnapshotNotice) -> Void
    package private(set) var image: ImageDevice?
    package private(set) var writableImage: ImageDevice?
    private var whenGone: (() -> Void)?
    private var isHeld = false
    /// From `destroy` on: the index may belong to another snapshot by now.
    private var isDestroyed = false
    /// The device's counter at the cut.
    private var copiedByteCountAtCut: UInt64 = 0

    init(
        device: Device, index: SnapshotIndex, notify: @escaping @Sendable (SnapshotNotice) -> Void
    ) {
        self.device = device
        self.index = index
        self.notify = notify
    }

    /// The cut was made: the images exist from now on.
    func held() {
        isHeld = true
        copiedByteCountAtCut = device.engine.counters.copiedByteCount
        image = ImageDevice(of: device, snapshot: index, isWritable: false)
        writableImage = ImageDevice(of: device, snapshot: index, isWritable: true)
    }

    /// What can be said of the image's cut.
    package enum Standing { case prepared, held, corrupted, destroyed }

    package var standing: Standing {
        if isDestroyed { return .destroyed }
        if !isHeld { return .prepared }
        return device.engine.report(on: index).isCorrupted ? .corrupted : .held
    }

    func corrupted(_ fault: Fault) { notify(.corrupted(fault)) }

    func overlayCorrupted(_ fault: Fault) { notify(.overlayCorrupted(fault)) }

    /// Destroys the part in whatever state it is; `whenGone` runs on the loop when everything
    /// that is not handed over is free. Once only.
    package func destroy(_ whenGone: @escaping () -> Void) {
        precondition(!isDestroyed, "a snapshot is destroyed once")
        isDestroyed = true
        self.whenGone = whenGone
        image?.snapshotDestroyed()
        writableImage?.snapshotDestroyed()
        if isHeld {
            device.engine.snapshotDestroyed(index)
        } else {
            device.engine.snapshotAbandoned(index)
        }
        device.engineTouched()
    }

    func gone() {
        let whenGone = whenGone
        self.whenGone = nil
        whenGone?()
    }

    /// What it uses; nil once it is destroyed.
    package var report: SnapshotPartReport? {
        guard !isDestroyed else { return nil }
        let copied = device.engine.counters.copiedByteCount
        let report = device.engine.report(on: index)
        return SnapshotPartReport(
            isCorrupted: report.isCorrupted,
            storedBlocks: report.preservedBlockCount - report.zeroBlockCount,
            zeroBlocks: report.zeroBlockCount, metadataBytes: report.metadataByteCount,
            copiedBytes: isHeld ? copied - copiedByteCountAtCut : 0,
            unstoredBlocks: UInt64(device.engine.unstoredBlockCount))
    }
}

extension Device {
    /// Does everything about a snapshot of this device that can fail; nil at a bound.
    package func prepareSnapshot(
        policy: OverflowPolicy, account: UInt16, sources added: [StorageSource],
        notify: @escaping @Sendable (SnapshotNotice) -> Void
    ) -> SnapshotPart? {
        guard let index = engine.snapshotPrepared(policy: policy, account: account) else {
            return nil
        }
        let part = SnapshotPart(device: self, index: index, notify: notify)
        parts[Int(index.rawValue)] = part
        for source in added where !addSource(source, to: index) {
            part.destroy {}
            return nil
        }
        engineTouched()
        return part
    }

    /// More room for a snapshot; false at the bound of sources.
    package func addSource(_ source: StorageSource, to snapshot: SnapshotIndex) -> Bool {
        guard
            let index = engine.sourceAdded(to: snapshot, extentByteCount: source.extentByteCount)
        else { return false }
        sources[Int(index.rawValue)] = source
        source.userAdded()
        engineTouched()
        return true
    }

    // MARK: Cut

    /// From now on changes wait; `drained` runs when none is under way.
    package func closeGate(_ drained: @escaping () -> Void) {
        gateDrained = drained
        engine.gateClosed(now: loop.now)
        engineTouched()
    }

    /// Changes continue, after a switch or instead of one.
    package func openGate() {
        gateDrained = nil
        engine.gateOpened(now: loop.now)
        engineTouched()
    }
}
