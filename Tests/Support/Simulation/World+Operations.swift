import BlockModel
import CopyOnWrite
import EngineState
import SnapshotCore

// What users do: write, zero, discard, read and write images, take and destroy snapshots, ask.

extension World {
    func startSomething() {
        let number = random.below(devices.count)
        let device = devices[number]
        operations += 1
        switch random.below(100) {
        case 0..<55: startOriginWrite(number)
        case 55..<78: startImageRead(number)
        case 78..<88:
            if profile.overlayWrites { startImageWrite(number) } else { startImageRead(number) }
        case 88..<92:
            if cut == nil { beginCut() }
        case 92..<94:
            if let snapshot = pick(device), !snapshot.isDestroyed, random.oneIn(2) {
                destroy(number, snapshot)
            }
        case 94..<98: checkChanges(number)
        case 98:
            if random.oneIn(4) {
                let offset = UInt64(random.below(Int(device.size)))
                let length = 1 + UInt64(random.below(Int(device.size - offset)))
                declareChanges(device, ByteRange(offset: offset, length: length))
            }
        default:
            if random.oneIn(2), let snapshot = pick(device), snapshot.isHeld, !snapshot.isDestroyed
            {
                coverage.hit(.storageAppended)
                addSource(device, snapshot.index)
            }
        }
        perform(number)
    }

    /// All storage of a device fails, now and then while much is on its way to it: that at once,
    /// and what comes for a while.
    func failAllStorage() {
        let busy = devices.indices.filter { number in
            let writes = pending.count { entry in
                guard case .storageWrite = entry.what else { return false }
                return entry.device == number
            }
            return writes > 1 || random.oneIn(50)
        }
        guard let number = busy.randomElement(using: &random) else { return }
        devices[number].outageEnd = tick + UInt64(random.below(400))
        for _ in 0..<100 {
            let concerned = pending.indices.filter { index in
                guard pending[index].device == number else { return false }
                switch pending[index].what {
                case .storageWrite, .extent: return true
                case .originWrite, .copyRead, .imageOriginRead, .imageStorageRead, .fill, .mapPage,
                    .findHoles:
                    return false
                }
            }
            guard let index = concerned.randomElement(using: &random) else { return }
            complete(at: index)
            if random.oneIn(8) { endTurn(number) }
        }
    }

    func pick(_ device: SimulatedDevice) -> SimulatedSnapshot? {
        guard !device.snapshots.isEmpty else { return nil }
        let keys = device.snapshots.keys.sorted()
        let snapshot = device.snapshots[keys[random.below(keys.count)]]!
        return snapshot.isHeld ? snapshot : nil
    }

    /// A held snapshot, or now and then one that goes: late users come to it.
    private func pickForUse(_ device: SimulatedDevice) -> SimulatedSnapshot? {
        guard let snapshot = pick(device) else { return nil }
        guard snapshot.isDestroyed else { return snapshot }
        guard random.oneIn(4) else { return nil }
        coverage.hit(.lateImageUser)
        return snapshot
    }

    private func idleRequest(_ device: SimulatedDevice) -> Int? {
        let start = random.below(SimulatedDevice.requestCount)
        for step in 0..<SimulatedDevice.requestCount {
            let slot = (start + step) % SimulatedDevice.requestCount
            if device.requests[slot].kind == .idle { return slot }
        }
        return nil
    }

    /// A range of any alignment, mostly small, within `size`.
    private func anyRange(_ size: UInt64) -> (offset: UInt64, length: UInt64) {
        let total = Int(size)
        var offset = random.below(total)
        var length: Int
        switch random.below(10) {
        case 0: length = 1 + random.below(total)
        case 1, 2: length = 1 + random.below(70000)
        case 3, 4:
            offset = offset / 512 * 512
            length = 512 * (1 + random.below(24))
        default:
            offset = offset / 4096 * 4096
            length = 4096 * (1 + random.below(3))
        }
        length = min(length, total - offset)
        return (UInt64(offset), UInt64(length))
    }

    private func fillPayload(_ device: SimulatedDevice, _ slot: Int, _ length: UInt64) {
        stamp += 1
        let bytes = device.payload(UInt32(slot))
        if random.oneIn(8) {
            bytes.initializeMemory(as: UInt8.self, repeating: 0, count: Int(length))
            return
        }
        // Each byte depends on the write and its place, so that shifts show.
        var state = stamp &* 0x9E37_79B9_7F4A_7C15
        var position = 0
        while position + 8 <= Int(length) {
            bytes.storeBytes(of: state, toByteOffset: position, as: UInt64.self)
            state &+= 0x1234_5678_9ABC_DEF1
            position += 8
        }
        while position < Int(length) {
            bytes.storeBytes(
                of: UInt8(truncatingIfNeeded: state), toByteOffset: position, as: UInt8.self)
            state = state >> 8 | stamp << 48
            position += 1
        }
    }

    private func startOriginWrite(_ number: Int) {
        let device = devices[number]
        guard let slot = idleRequest(device) else { return }
        var (offset, length) = anyRange(device.size)
        var operation = RequestOperation.write
        switch random.below(12) {
        case 0: operation = .discard
        case 1: operation = .writeZeroes
        default: break
        }
        if operation != .write, random.oneIn(8) { (offset, length) = (0, device.size) }
        // A late user checked its range before the device was resized.
        let isLate = device.formerSize > device.size && random.oneIn(8)
        if isLate { (offset, length) = anyRange(device.formerSize) }
        device.requests[slot] = SimulatedRequest()
        device.requests[slot].kind = .originWrite
        device.requests[slot].waitStart = now
        device.requests[slot].heldSince = now
        device.requests[slot].operation = operation
        device.requests[slot].offset = offset
        device.requests[slot].length = length
        if operation == .write { fillPayload(device, slot, length) }
        let isBeyondEnd = offset + length > device.size
        if isBeyondEnd {
            coverage.hit(.lateWrite)
        } else {
            device.note(&device.touched, offset: offset, length: length)
        }
        let admission = device.engine.writeArrived(
            RequestIndex(UInt32(slot)), operation: operation, offset: offset, length: length,
            now: now)
        if isBeyondEnd, admission != .refused(.noSpace) {
            violate("device \(number): a write beyond the end was answered with \(admission)")
            return
        }
        switch admission {
        case .issue:
            coverage.hit(.fastPath)
            issueAtOnce(number, UInt32(slot), offset, length)
        case .taken: break
        case .refused(let fault):
            device.requests[slot].kind = .idle
            if isBeyondEnd { return }
            violate("a write was refused with \(fault)")
        }
    }

    private func issueAtOnce(_ number: Int, _ request: UInt32, _ offset: UInt64, _ length: UInt64) {
        let device = devices[number]
        device.originWritesUnderWay += 1
        device.requests[Int(request)].isIssued = true
        if device.isSwitched { violate("a write was issued between switch and opening") }
        if random.oneIn(2) { apply(device, request, offset, length) }
        pending.append((number, .originWrite(request, offset: offset, length: length)))
    }

    private func startImageRead(_ number: Int) {
        let device = devices[number]
        guard let snapshot = pickForUse(device) else { return }
        let (offset, length) = anyRange(snapshot.size)
        readImage(number, snapshot, offset, length, overlay: random.oneIn(2))
    }

    func readWhole(_ number: Int, _ snapshot: SimulatedSnapshot) {
        guard snapshot.isHeld else { return }
        readImage(number, snapshot, 0, snapshot.size, overlay: false)
        perform(number)
        readImage(number, snapshot, 0, snapshot.size, overlay: true)
        perform(number)
    }

    private func readImage(
        _ number: Int, _ snapshot: SimulatedSnapshot, _ offset: UInt64, _ length: UInt64,
        overlay: Bool
    ) {
        let device = devices[number]
        guard let slot = idleRequest(device) else { return }
        device.requests[slot] = SimulatedRequest()
        device.requests[slot].kind = .imageRead
        device.requests[slot].operation = .read
        device.requests[slot].offset = offset
        device.requests[slot].length = length
        device.requests[slot].snapshot = Int(snapshot.index.rawValue)
        device.requests[slot].isOverlay = overlay
        device.requests[slot].startTick = tick
        for block in blocks(touching: ByteRange(offset: offset, length: length))
        where snapshot.writersUnderWay[Int(block)] > 0 {
            // What it shows of these blocks is between two writes: they are not compared.
            snapshot.writtenTick[Int(block)] = tick
        }
        device.payload(UInt32(slot)).initializeMemory(
            as: UInt8.self, repeating: 0xEE, count: Int(length))
        let admission = device.engine.imageReadArrived(
            RequestIndex(UInt32(slot)), snapshot: snapshot.index, overlay: overlay,
            offset: offset, length: length, now: now)
        refuse(number, slot, snapshot, admission)
    }

    private func startImageWrite(_ number: Int) {
        let device = devices[number]
        guard let snapshot = pickForUse(device), let slot = idleRequest(device) else { return }
        let (offset, length) = anyRange(snapshot.size)
        let operation: RequestOperation = random.oneIn(5) ? .writeZeroes : .write
        device.requests[slot] = SimulatedRequest()
        device.requests[slot].kind = .imageWrite
        device.requests[slot].operation = operation
        device.requests[slot].offset = offset
        device.requests[slot].length = length
        device.requests[slot].snapshot = Int(snapshot.index.rawValue)
        device.requests[slot].isOverlay = true
        if operation == .write { fillPayload(device, slot, length) }
        let touched = blocks(touching: ByteRange(offset: offset, length: length))
        for block in touched {
            snapshot.writersUnderWay[Int(block)] += 1
            snapshot.writtenTick[Int(block)] = tick
        }
        let admission = device.engine.imageWriteArrived(
            RequestIndex(UInt32(slot)), snapshot: snapshot.index, operation: operation,
            offset: offset, length: length, now: now)
        if case .refused = admission {
            for block in touched { snapshot.writersUnderWay[Int(block)] -= 1 }
        } else {
            // Writers of a block are served in order of arrival, so the model may run ahead.
            let payload = UnsafeRawBufferPointer(
                start: device.payload(UInt32(slot)), count: Int(length))
            snapshot.overlay.withUnsafeMutableBytes { bytes in
                let target = UnsafeMutableRawBufferPointer(
                    rebasing: bytes[Int(offset)..<Int(offset + length)])
                if operation == .write {
                    target.copyMemory(from: payload)
                } else {
                    target.initializeMemory(as: UInt8.self, repeating: 0)
                }
            }
        }
        refuse(number, slot, snapshot, admission)
    }

    private func refuse(
        _ number: Int, _ slot: Int, _ snapshot: SimulatedSnapshot, _ admission: Admission
    ) {
        guard case .refused(let fault) = admission else { return }
        devices[number].requests[slot].kind = .idle
        let isExcused = snapshot.isCorrupted || snapshot.isOverlayLost || snapshot.isDestroyed
        if !isExcused { violate("an image request was refused with \(fault)") }
    }

    func addSource(_ device: SimulatedDevice, _ snapshot: SnapshotIndex) {
        // Small extents are used up often; four times as many make up for what is left in each.
        let isSmall = random.oneIn(2)
        let extentByteCount = isSmall ? ExtentSize.least * 2 : ExtentTable.extentByteCount
        guard
            let source = device.engine.sourceAdded(to: snapshot, extentByteCount: extentByteCount)
        else { return }
        device.sources[Int(source.rawValue)] = SimulatedSource(
            extentCount: profile.extentsPerSource * (isSmall ? 8 : 1),
            extentByteCount: extentByteCount, of: snapshot)
    }

    func destroy(_ number: Int, _ snapshot: SimulatedSnapshot) {
        coverage.hit(.destroyed)
        snapshot.isDestroyed = true
        devices[number].engine.snapshotDestroyed(snapshot.index)
    }

    func destroyAll(_ number: Int) {
        for snapshot in devices[number].snapshotsInOrder
        where snapshot.isHeld && !snapshot.isDestroyed {
            destroy(number, snapshot)
            perform(number)
        }
    }
}
