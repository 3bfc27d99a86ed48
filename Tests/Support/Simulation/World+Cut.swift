import BlockModel
import ChangeTracking
import CopyOnWrite
import CutCoordination
import EngineState
import SnapshotCore

/// A cut under way: the coordinator, and what it asked for and was not done yet.
struct Cut {
    var coordinator: CutCoordinator
    var devices: [Int]
    var tasks: [CutCoordinator.Effect] = []
    var isBase: Bool
    var keepsData: Bool
}

// Cuts over some of the devices, with every step at a random later moment; and what changed.

extension World {
    func beginCut() {
        var chosen = devices.indices.filter { _ in random.oneIn(2) }
        if chosen.isEmpty { chosen = [random.below(devices.count)] }
        let keepsData = !random.oneIn(4)
        if keepsData {
            chosen.removeAll { devices[$0].snapshots.count >= profile.snapshotsMax }
            if chosen.isEmpty { return }
        }
        var cut = Cut(
            coordinator: CutCoordinator(deviceCount: chosen.count, limitNanoseconds: 300_000),
            devices: chosen, isBase: random.oneIn(2), keepsData: keepsData)
        cut.coordinator.begin()
        self.cut = cut
    }

    func stepCut() {
        cut!.coordinator.timeReached(now)
        while let effect = cut!.coordinator.nextEffect() { cut!.tasks.append(effect) }
        guard !cut!.tasks.isEmpty, random.oneIn(3) else { return }
        let task = cut!.tasks.remove(at: random.below(cut!.tasks.count))
        operations += 1
        performCut(task)
    }

    private func performCut(_ task: CutCoordinator.Effect) {
        let keepsData = cut!.keepsData
        switch task {
        case .prepare(let member):
            let device = devices[cut!.devices[member]]
            var fault: Fault? = random.oneIn(20) ? .noSpace : nil
            if fault == nil, keepsData {
                if let index = device.engine.snapshotPrepared(
                    policy: profile.policy,
                    account: UInt16(cut!.devices[member] * 16 + random.below(16)))
                {
                    let snapshot = SimulatedSnapshot(index: index)
                    device.snapshots[Int(index.rawValue)] = snapshot
                    device.prepared = snapshot
                    for _ in 0...random.below(2) { addSource(device, index) }
                } else {
                    fault = .noMemory
                }
            }
            cut!.coordinator.prepared(device: member, fault: fault, now: now)
            perform(cut!.devices[member])
        case .closeGate(let member):
            let number = cut!.devices[member]
            devices[number].isGateClosed = true
            devices[number].engine.gateClosed(now: now)
            perform(number)
        case .switchEpoch(let member):
            switchDevice(cut!.devices[member])
            cut!.coordinator.switched(device: member)
        case .openGate(let member):
            let number = cut!.devices[member]
            if !cut!.devices.allSatisfy({ devices[$0].isSwitched || !devices[$0].isGateClosed }) {
                violate("a gate opened before every device had switched")
            }
            open(number)
            cut!.coordinator.opened(device: member)
        case .undo(let member):
            coverage.hit(.cutUndone)
            let number = cut!.devices[member]
            let device = devices[number]
            // The order of its parts must not matter.
            cut!.tasks.removeAll { $0 == .closeGate(device: member) }
            if let snapshot = device.prepared {
                device.prepared = nil
                snapshot.isDestroyed = true
                device.engine.snapshotAbandoned(snapshot.index)
                perform(number)
            }
            if device.isGateClosed { open(number) }
            cut!.coordinator.undone(device: member)
        case .finished(let fault):
            coverage.hit(fault == nil ? .cutMade : .cutFailed)
            cut = nil
        }
    }

    private func open(_ number: Int) {
        let device = devices[number]
        device.isGateClosed = false
        device.isSwitched = false
        device.restartWaits(now: now)
        device.engine.gateOpened(now: now)
        for request in device.requests where request.kind == .originWrite {
            device.note(&device.touched, offset: request.offset, length: request.length)
        }
        perform(number)
    }

    func gateDrained(_ number: Int) {
        guard let member = cut?.devices.firstIndex(of: number) else {
            violate("a gate drained without a cut")
            return
        }
        cut!.coordinator.gateDrained(device: member)
    }

    private func switchDevice(_ number: Int) {
        let device = devices[number]
        if device.originWritesUnderWay != 0 { violate("a switch with writes under way") }
        for member in cut!.devices where !devices[member].isGateClosed {
            violate("a switch while device \(member) is open")
        }
        let snapshot = device.prepared
        device.prepared = nil
        if profile.resizes, random.oneIn(3) { resize(device) }
        let generation = device.engine.generationOrdinal
        let exactBase = device.wasNewestBaseDisturbed ? nil : device.newestBase
        let newMap = random.oneIn(30) || device.isTrackingLost ? device.newMap() : nil
        if newMap != nil { coverage.hit(.generationBegun) }
        let ended = device.engine.cutSwitched(
            snapshot: snapshot?.index, isBase: cut!.isBase, newMap: newMap)
        device.isSwitched = true
        if cut!.isBase, newMap == nil {
            device.bases.append(ended.rawValue)
            device.baseSizes[ended.rawValue] = device.size
            device.newestBase = ended.rawValue
            device.wasNewestBaseDisturbed = false
        }
        if let snapshot {
            snapshot.isHeld = true
            snapshot.cutEpoch = ended.rawValue
            snapshot.exactBase = exactBase
            snapshot.generation = generation
            snapshot.size = device.size
            snapshot.image = [UInt8](
                UnsafeRawBufferPointer(start: device.origin, count: Int(device.size)))
            snapshot.overlay = snapshot.image
            snapshot.writtenTick = Array(repeating: 0, count: device.blockCount)
            snapshot.writersUnderWay = Array(repeating: 0, count: device.blockCount)
            snapshot.isUnknown = Array(repeating: false, count: device.blockCount)
        }
        perform(number)
    }

    /// As a service does that finds another size at a cut: a smaller one begins a new generation.
    private func resize(_ device: SimulatedDevice) {
        let newSize =
            random.oneIn(2)
            ? device.size + UInt64(random.below(Int(device.capacity - device.size) + 1))
            : 1 + UInt64(random.below(Int(device.size)))
        if newSize < device.size {
            coverage.hit(.shrunk)
            _ = device.engine.cutSwitched(snapshot: nil, isBase: false, newMap: device.newMap())
        } else {
            coverage.hit(.grown)
        }
        device.resize(to: newSize)
        for snapshot in device.snapshots.values where snapshot.size > newSize {
            isCutShort = true
        }
        device.engine.deviceResized(to: newSize, now: now)
        perform(devices.firstIndex { $0 === device }!)
        isCutShort = false
    }

    // MARK: What changed

    /// A mark by hand: changed in the present epoch, and before the cut of each held snapshot.
    func declareChanges(_ device: SimulatedDevice, _ range: ByteRange) {
        guard !device.isTrackingLost, device.engine.unreservedPages(of: range, countMax: 1).isEmpty
        else { return }
        let held = device.snapshotsInOrder.filter {
            $0.isHeld && !$0.isCorrupted && !$0.isDestroyed
                && $0.generation == device.engine.generationOrdinal
        }
        coverage.hit(held.isEmpty ? .changesDeclared : .changesDeclaredToSnapshot)
        device.engine.changesDeclared(in: range)
        for epoch in [device.engine.epoch.rawValue] + held.map(\.cutEpoch) {
            device.note(
                &device.changed, offset: range.offset, length: range.length, epoch: epoch)
            device.note(
                &device.touched, offset: range.offset, length: range.length, epoch: epoch)
        }
    }

    func checkChanges(_ number: Int) {
        let device = devices[number]
        if device.bases.count > 1, random.oneIn(8) {
            // A checkpoint is deleted.
            device.bases.remove(at: random.below(device.bases.count))
            let newest = device.bases.last!
            if newest != device.newestBase {
                device.newestBase = newest
                device.wasNewestBaseDisturbed = true
                device.engine.newestBaseChanged(to: newest)
            }
            return
        }
        guard let base = device.bases.randomElement(using: &random) else { return }
        var until: SimulatedSnapshot?
        if random.oneIn(2), let snapshot = pick(device), snapshot.cutEpoch >= base,
            !snapshot.isCorrupted, !snapshot.isDestroyed,
            snapshot.generation == device.engine.generationOrdinal
        {
            until = snapshot
        }
        let size = until?.size ?? device.size
        guard let reported = query(device, base, until) else { return }
        let last = until?.cutEpoch ?? device.engine.epoch.rawValue
        var mustNot = [Bool](repeating: true, count: device.blockCount)
        for (epoch, blocks) in device.changed where epoch > base && epoch <= last {
            for block in blocks.indices where blocks[block] && UInt64(block) * 4096 < size {
                if !reported[block] {
                    violate(
                        "device \(number): block \(block) changed in epoch \(epoch), since \(base) "
                            + "until \(last) does not say so")
                    return
                }
            }
        }
        coverage.hit(until == nil ? .changesChecked : .frozenChangesChecked)
        for (epoch, blocks) in device.touched where epoch > base && epoch <= last {
            for block in blocks.indices where blocks[block] { mustNot[block] = false }
        }
        let isExact =
            until.map { $0.exactBase == base }
            ?? (base == device.newestBase && !device.wasNewestBaseDisturbed)
        for block in mustNot.indices where reported[block] && mustNot[block] {
            // Older bases may see whole chunks, but only those touched.
            let chunk = block / 16 * 16
            let isChunkTouched = mustNot[chunk..<min(chunk + 16, mustNot.count)].contains(false)
            if isExact || !isChunkTouched {
                violate("device \(number): block \(block) reported since \(base) without a change")
                return
            }
        }
    }

    /// The reported blocks, fetched in pages of a few ranges; nil when nothing is known.
    private func query(
        _ device: SimulatedDevice, _ base: UInt32, _ until: SimulatedSnapshot?
    ) -> [Bool]? {
        var reported = [Bool](repeating: false, count: device.blockCount)
        let page = UnsafeMutableBufferPointer<ByteRange>.allocate(capacity: 1 + random.below(5))
        defer { page.deallocate() }
        let size = until?.size ?? device.size
        var offset: UInt64 = 0
        var lastEnd: UInt64?
        let budget = random.oneIn(2) ? UInt64.max : UInt64(1 + random.below(3))
        while offset < size {
            switch device.engine.changes(
                since: base, baseSize: device.baseSizes[base] ?? 0, until: until?.index,
                from: offset,
                chunkBudget: budget, into: page)
            {
            case .ranges(let count, let resumeOffset):
                for range in page[0..<count] {
                    // Only where a slice ended may two ranges meet.
                    if let lastEnd,
                        range.offset < lastEnd || (range.offset == lastEnd && lastEnd != offset)
                    {
                        violate("ranges are not maximal")
                    }
                    if budget == .max, range.offset == lastEnd { violate("a range was cut in two") }
                    lastEnd = range.end
                    for block in blocks(touching: range) { reported[Int(block)] = true }
                }
                if resumeOffset <= offset { violate("a query does not get on") }
                offset = resumeOffset
            case .unknown:
                if !device.isTrackingLost { violate("a query was refused") }
                return nil
            case .damaged:
                violate("a map was called damaged")
                return nil
            }
            if violation != nil { return nil }
        }
        return reported
    }
}
