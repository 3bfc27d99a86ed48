import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

// What the data plane would do: effects are performed in order, completions come later.

extension World {
    func perform(_ number: Int) {
        let device = devices[number]
        while let effect = device.engine.nextEffect() {
            coverage.hit(effect)
            switch effect {
            case .issue(let request):
                let record = device.requests[Int(request.rawValue)]
                issue(number, request.rawValue, record.offset, record.length)
            case .issuePart(let request, let offset, let length):
                issue(number, request.rawValue, offset, length)
            case .findHoles(let request, let offset, _):
                device.requests[Int(request.rawValue)].isAsking = true
                let answer = random.oneIn(2) ? lookForHole(device, at: offset) : nil
                add(number, .findHoles(request.rawValue, offset: offset, answer: answer))
            case .finish(let request, let fault):
                finished(number, request.rawValue, fault)
            case .readOrigin(let copy, let offset, let length):
                let isRead = random.oneIn(2)
                for buffer in device.engine.buffers(of: copy) {
                    self.buffer(buffer).initializeMemory(
                        as: UInt8.self, repeating: 0xB0, count: 4096)
                }
                if isRead { readCopy(device, copy, offset, length) }
                add(number, .copyRead(copy, offset: offset, length: length, isRead: isRead))
            case .writeStorage(let batch, let source, let byteOffset, _):
                let isFetched = random.oneIn(2)
                if isFetched { fetch(device, batch, source, byteOffset) }
                add(
                    number,
                    .storageWrite(batch, source, byteOffset: byteOffset, isFetched: isFetched))
            case .readOriginForImage, .readStorageForImage, .copyFromMemory, .fillZero, .fillBlocks:
                performForImage(number, effect)
            case .requestExtent(let source, let purpose):
                let storage = device.sources[Int(source.rawValue)]!
                if storage.isClosed { violate("an extent is wanted of a closed source") }
                storage.askedCount += 1
                add(number, .extent(source, purpose))
            case .releaseExtent(let source, let byteOffset):
                let storage = device.sources[Int(source.rawValue)]!
                guard let base = storage.extents.removeValue(forKey: byteOffset) else {
                    violate("an extent was released that was not granted")
                    return
                }
                base.deallocate()
                storage.space.extentReleased(byteOffset: byteOffset)
                storage.erase()
            case .sourceClosed(let source):
                let storage = device.sources[Int(source.rawValue)]!
                if storage.isClosed { violate("a source closed twice") }
                storage.isClosed = true
            case .sourceDrained(let source):
                let storage = device.sources.removeValue(forKey: Int(source.rawValue))!
                if !storage.extents.isEmpty { violate("a drained source holds extents") }
                if !storage.isClosed { violate("a source drained before it closed") }
            case .reserveMapPage(let page):
                if device.mapAnswersUnderWay.insert(page).inserted {
                    add(number, .mapPage(page))
                }
            case .gateDrained:
                if device.originWritesUnderWay != 0 {
                    violate("a gate drained with origin writes under way")
                }
                gateDrained(number)
            case .snapshotCorrupted(let snapshot, let fault):
                corrupted(number, Int(snapshot.rawValue), fault)
            case .overlayCorrupted(let snapshot, _):
                device.snapshots[Int(snapshot.rawValue)]!.isOverlayLost = true
            case .snapshotGone(let snapshot):
                guard device.snapshots.removeValue(forKey: Int(snapshot.rawValue)) != nil else {
                    violate("a snapshot went twice")
                    return
                }
                for source in device.sources.values
                where source.snapshot == snapshot && source.askedCount > 0 {
                    violate("a snapshot went while an extent was on its way to it")
                }
            case .timer(let time):
                device.timer = time
            }
        }
    }

    private func performForImage(_ number: Int, _ effect: Effect) {
        let device = devices[number]
        switch effect {
        case .readOriginForImage(let request, let offset, let length):
            let isRead = random.oneIn(2)
            if isRead { readOriginForImage(device, request, offset, length) }
            add(
                number,
                .imageOriginRead(
                    request.rawValue, offset: offset, length: length, isRead: isRead))
        case .readStorageForImage(
            let request, let source, let byteOffset, let slot, let first, let count):
            add(
                number,
                .imageStorageRead(
                    request.rawValue, source, byteOffset: byteOffset, slot: slot,
                    firstBlock: first, blockCount: count))
        case .copyFromMemory(let request, let index, let block, let target):
            put(
                device, request, block: block, from: UnsafeRawPointer(buffer(index)),
                into: target)
        case .fillZero(let request, let first, let count, let target):
            for block in first..<first + UInt64(count) {
                put(device, request, block: block, from: nil, into: target)
            }
        case .fillBlocks(let request):
            add(number, .fill(request.rawValue))
        case .issue, .issuePart, .findHoles, .finish, .readOrigin, .writeStorage, .requestExtent,
            .releaseExtent, .sourceClosed, .sourceDrained, .reserveMapPage, .gateDrained,
            .snapshotCorrupted, .overlayCorrupted,
            .snapshotGone, .timer:
            preconditionFailure("an image's effect reads or fills")
        }
    }

    private func add(_ number: Int, _ what: Pending) { pending.append((number, what)) }

    private func issue(_ number: Int, _ request: UInt32, _ offset: UInt64, _ length: UInt64) {
        let device = devices[number]
        device.originWritesUnderWay += 1
        device.requests[Int(request)].isIssued = true
        if device.isSwitched { violate("a write was issued between switch and opening") }
        if offset + length > device.size {
            violate("device \(number): a write was issued beyond the end")
        }
        // The bytes may arrive at once, in part, or at completion.
        switch random.below(3) {
        case 0: apply(device, request, offset, length)
        case 1: apply(device, request, offset, length / 2)
        default: break
        }
        add(number, .originWrite(request, offset: offset, length: length))
    }

    func apply(
        _ device: SimulatedDevice, _ request: UInt32, _ offset: UInt64, _ length: UInt64
    ) {
        guard length > 0 else { return }
        let record = device.requests[Int(request)]
        note(device, record.operation, offset, length)
        let target = device.origin + Int(offset)
        switch record.operation {
        case .write:
            target.copyMemory(
                from: device.payload(request) + Int(offset - record.offset),
                byteCount: Int(length))
        case .discard, .writeZeroes:
            target.initializeMemory(as: UInt8.self, repeating: 0, count: Int(length))
        case .read, .flush, .prefetch, .blockStatus:
            preconditionFailure("the simulator writes, zeroes and discards")
        }
    }

    /// What changes: all that is written, and what is not zero yet of what becomes zero.
    private func note(
        _ device: SimulatedDevice, _ operation: RequestOperation, _ offset: UInt64,
        _ length: UInt64
    ) {
        guard operation != .write else {
            device.note(&device.changed, offset: offset, length: length)
            return
        }
        for block in blocks(touching: ByteRange(offset: offset, length: length)) {
            let from = max(block * 4096, offset)
            let count = min((block + 1) * 4096, offset + length) - from
            let bytes = UnsafeRawBufferPointer(start: device.origin + Int(from), count: Int(count))
            if !isZero(bytes) { device.note(&device.changed, offset: from, length: count) }
        }
    }

    /// What lies at `offset` of the origin, in sectors: bytes that are all zero count as a hole.
    func lookForHole(_ device: SimulatedDevice, at offset: UInt64) -> HoleAnswer {
        // It may have shrunk since it was asked.
        guard offset < device.size else { return HoleAnswer(isHole: true, length: 0) }
        func isHole(_ position: UInt64) -> Bool {
            let end = min((position / 512 + 1) * 512, device.size)
            return isZero(
                UnsafeRawBufferPointer(
                    start: device.origin + Int(position), count: Int(end - position)))
        }
        let first = isHole(offset)
        var position = min((offset / 512 + 1) * 512, device.size)
        while position < device.size, isHole(position) == first {
            position = min(position + 512, device.size)
        }
        return HoleAnswer(isHole: first, length: position - offset)
    }

    func readCopy(
        _ device: SimulatedDevice, _ copy: CopyIndex, _ offset: UInt64, _ length: UInt64
    ) {
        var position: UInt64 = 0
        for index in device.engine.buffers(of: copy) {
            let bytes = buffer(index)
            let count = min(4096, length - position)
            bytes.initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
            bytes.copyMemory(
                from: device.origin + Int(offset + position), byteCount: Int(count))
            position += count
        }
    }

    func fetch(
        _ device: SimulatedDevice, _ batch: BatchIndex, _ source: SourceIndex,
        _ byteOffset: UInt64
    ) {
        var target = device.sources[Int(source.rawValue)]!.pointer(at: byteOffset)
        for index in device.engine.buffers(of: batch) {
            target.copyMemory(from: buffer(index), byteCount: 4096)
            target += 4096
        }
    }

    func readOriginForImage(
        _ device: SimulatedDevice, _ request: RequestIndex, _ offset: UInt64, _ length: UInt64
    ) {
        switch device.engine.target(of: request) {
        case .payload:
            let record = device.requests[Int(request.rawValue)]
            (device.payload(request.rawValue) + Int(offset - record.offset)).copyMemory(
                from: device.origin + Int(offset), byteCount: Int(length))
        case .buffer(let index):
            buffer(index).initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
            buffer(index).copyMemory(
                from: device.origin + Int(offset), byteCount: Int(length))
        }
    }

    /// Puts what belongs to the request of device block `block` into its target; nil: zeroes.
    func put(
        _ device: SimulatedDevice, _ request: RequestIndex, block: UInt64,
        from bytes: UnsafeRawPointer?, into destination: ImageTarget
    ) {
        switch destination {
        case .payload:
            let record = device.requests[Int(request.rawValue)]
            let from = max(block * 4096, record.offset)
            let to = min((block + 1) * 4096, record.offset + record.length)
            let target = device.payload(request.rawValue) + Int(from - record.offset)
            if let bytes {
                target.copyMemory(from: bytes + Int(from - block * 4096), byteCount: Int(to - from))
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0, count: Int(to - from))
            }
        case .buffer(let index):
            if let bytes {
                buffer(index).copyMemory(from: bytes, byteCount: 4096)
            } else {
                buffer(index).initializeMemory(as: UInt8.self, repeating: 0, count: 4096)
            }
        }
    }
}
