package import BlockModel
package import ChangeTracking
package import CopyOnWrite
package import EngineState

// The device's part in a cut: prepare, close, drain, switch, open; or undo at any point before
// the switch.

extension SnapshotEngine {
    /// Does everything about a snapshot that can fail; nil at a bound. `account` names the
    /// snapshot in the shared pool of buffers, below 1024.
    package func snapshotPrepared(policy: OverflowPolicy, account: UInt16) -> SnapshotIndex? {
        precondition(account < 1024, "the pool of buffers has 1024 accounts")
        for number in 0..<limits.snapshotCount where snapshots[number].state == .free {
            let index = SnapshotIndex(UInt16(number))
            guard let layer = openLayer(role: .prepared, snapshot: index) else { return nil }
            snapshots[index] = SnapshotRecord()
            snapshots[index].state = .prepared
            snapshots[index].layer = layer
            snapshots[index].account = account
            snapshots[index].policy = policy.kind
            snapshots[index].limitNanoseconds = policy.limitNanoseconds
            return index
        }
        return nil
    }

    /// The cut was called off before its switch: the prepared snapshot goes. Its sources are
    /// drained, then `snapshotGone` follows.
    package func snapshotAbandoned(_ snapshot: SnapshotIndex) {
        let record = snapshots.pointer(to: snapshot)
        guard record.pointee.state == .prepared, let layer = record.pointee.layer else {
            preconditionFailure("only a prepared snapshot is abandoned")
        }
        startFreeing(layer)
        record.pointee.layer = nil
        record.pointee.state = .destroying
        sources.close(of: snapshot, &effects)
        settle()
    }

    /// From now on requests wait; `gateDrained` follows when none is under way. Those admitted
    /// but not issued go back behind the gate, in front of later ones.
    package func gateClosed(now: UInt64) {
        timeAdvanced(to: now)
        precondition(isGateOpen, "a gate closes once")
        isGateOpen = false
        gateCount += 1
        isDrainWanted = true
        var returning = RequestList()
        while let index = requests.pop(&yielded) { requests.append(index, to: &returning) }
        while let index = requests.pop(&memoryWaiters) { requests.append(index, to: &returning) }
        for copy in 0..<limits.copyCount
        where copies[copy].isUsed {
            while let index = requests.pop(&copies[copy].waiters) {
                requests.append(index, to: &returning)
            }
        }
        // What is under way already has to finish; the others park. Those of images go on.
        while let index = requests.pop(&returning) { wake(index) }
        settle()
        reportDrained()
    }

    /// The cut. Cannot fail: the epoch ends, the prepared snapshot (if any) is held from now on.
    /// `isBase`: the cut stays usable as a base of queries. `newMap` begins a new generation (it
    /// must at `Epoch.last`). Returns the epoch that ended, of the old map.
    package func cutSwitched(
        snapshot: SnapshotIndex?, isBase: Bool, newMap: ChangeMap? = nil
    ) -> Epoch {
        precondition(!isGateOpen && underWayCount == 0, "a cut is made behind a drained gate")
        // Data still being copied for the newest layer is the same at the cut: the new layer
        // will preserve it when it is overwritten, and older images find it there.
        orphanCopies(of: nil)
        settle()
        let ended = map.current
        let baseBefore = map.newestBase
        if let newMap {
            map = newMap
            generationOrdinal += 1
            isTrackingLost = false
        } else {
            _ = map.cutMade(isBase: isBase)
        }
        if let snapshot {
            let record = snapshots.pointer(to: snapshot)
            guard record.pointee.state == .prepared, let layer = record.pointee.layer else {
                preconditionFailure("a cut holds a prepared snapshot")
            }
            record.pointee.state = .held
            record.pointee.size = size
            record.pointee.cutEpoch = ended.rawValue
            record.pointee.baseBefore = baseBefore
            record.pointee.generation = generationOrdinal - (newMap == nil ? 0 : 1)
            layerUses[layer].role = .live
            chain[chainCount] = layer
            chainCount += 1
            newestLive = chainCount - 1
        }
        holeChunkCountLeft = limits.heldHoleChunkCountMax
        return ended
    }

    /// The gate opens, after a switch or an undo: parked requests are admitted in order.
    package func gateOpened(now: UInt64) {
        timeAdvanced(to: now)
        precondition(!isGateOpen, "only a closed gate opens")
        isGateOpen = true
        isDrainWanted = false
        while let index = requests.pop(&parked) { wakeWrite(index) }
        settle()
    }

    /// The newest cut usable as a base is another one: a checkpoint was deleted. 0: none is.
    package func newestBaseChanged(to base: UInt32) { map.newestBaseChanged(to: base) }

    /// Bytes of the snapshot's image.
    package func imageSize(of snapshot: SnapshotIndex) -> UInt64 {
        snapshots[snapshot].size
    }

    /// What the snapshot uses and whether its image can be trusted.
    package func report(on snapshot: SnapshotIndex) -> SnapshotReport {
        let record = snapshots[snapshot]
        var report = SnapshotReport()
        report.isCorrupted = record.state == .corrupted
        if let layer = record.layer {
            report.preservedBlockCount = layers[layer].preservedCount
            report.zeroBlockCount = layers[layer].zeroCount
            report.metadataByteCount = layers[layer].byteCount
        }
        return report
    }
}
