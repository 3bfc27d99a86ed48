import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

// How what was started comes to its end: well, short, or with a fault.

extension World {
    /// Bytes done of `full`: sometimes less.
    private func transferred(_ full: UInt64) -> UInt64 {
        guard random.oneIn(profile.shortTransfer), !isWindingDown else { return full }
        coverage.hit(.shortTransfer)
        return UInt64(random.below(Int(full)))
    }

    /// What a short transfer did not bring is not what it was.
    private func spoil(_ bytes: UnsafeMutableRawPointer, _ done: UInt64, _ full: UInt64) {
        (bytes + Int(done)).initializeMemory(
            as: UInt8.self, repeating: 0x5D, count: Int(full - done))
    }

    private func isFaulty(_ oneIn: Int) -> Bool { !isWindingDown && random.oneIn(oneIn) }

    /// All storage of the device fails now.
    private func isOut(_ device: SimulatedDevice) -> Bool {
        !isWindingDown && tick <= device.outageEnd
    }

    /// A pool takes nothing now, whatever room there is.
    private func isRefused() -> Bool {
        !isWindingDown && profile.refusals && random.oneIn(5)
    }

    func complete(_ number: Int, _ what: Pending) {
        let device = devices[number]
        switch what {
        case .originWrite(let request, let offset, let length):
            completeOriginWrite(number, request, offset, length)
        case .copyRead(let copy, let offset, let length, let isRead):
            completeCopyRead(device, copy, offset, length, isRead)
        case .storageWrite(let batch, let source, let byteOffset, let isFetched):
            let count = device.engine.buffers(of: batch).count
            let full = UInt64(count) * 4096
            if isFaulty(profile.storageWriteFault) || isOut(device) {
                coverage.hit(.storageWriteFault)
                spoil(device.sources[Int(source.rawValue)]!.pointer(at: byteOffset), 0, full)
                device.engine.storageWriteFinished(
                    batch, byteCount: 0, fault: random.oneIn(2) ? .inputOutput : .noSpace)
                return
            }
            let done = transferred(full)
            if !isFetched { fetch(device, batch, source, byteOffset) }
            if done < full {
                spoil(device.sources[Int(source.rawValue)]!.pointer(at: byteOffset), done, full)
            }
            device.engine.storageWriteFinished(batch, byteCount: done, fault: nil)
        case .imageOriginRead(let request, let offset, let length, let isRead):
            if !isRead { readOriginForImage(device, RequestIndex(request), offset, length) }
            let fault: Fault? = isFaulty(profile.imageReadFault) ? .inputOutput : nil
            if fault != nil { device.requests[Int(request)].isFaultInjected = true }
            let done = fault == nil ? transferred(length) : 0
            if done < length, case .payload = device.engine.target(of: RequestIndex(request)) {
                let record = device.requests[Int(request)]
                spoil(device.payload(request) + Int(offset - record.offset), done, length)
            }
            device.engine.imageOriginReadFinished(
                RequestIndex(request), offset: offset, length: length, byteCount: done,
                fault: fault)
        case .imageStorageRead(
            let request, let source, let byteOffset, let slot, let first, let count):
            completeStorageRead(device, request, source, byteOffset, slot, first, count)
        case .fill(let request):
            completeFill(device, request)
        case .findHoles(let request, let offset, let answer):
            var answer = answer ?? lookForHole(device, at: offset)
            if isRefused() { answer = HoleAnswer(isHole: false, length: 0) }
            coverage.hit(answer.isHole ? .holeFound : .noHoleFound)
            device.requests[Int(request)].isAsking = false
            device.requests[Int(request)].waitStart = now
            device.engine.originScanned(
                RequestIndex(request), isHole: answer.isHole, length: answer.length)
        case .extent(let source, let purpose):
            answerExtent(device, source, purpose)
        case .mapPage(let page):
            device.mapAnswersUnderWay.remove(page)
            device.restartWaits(now: now)
            if isFaulty(profile.mapFault) {
                coverage.hit(.mapRefused)
                device.isTrackingLost = true
                device.engine.mapPageRefused(page)
            } else {
                device.engine.mapPageReserved(page)
            }
        }
    }

    private func completeOriginWrite(
        _ number: Int, _ request: UInt32, _ offset: UInt64, _ length: UInt64
    ) {
        let device = devices[number]
        device.originWritesUnderWay -= 1
        let fault: Fault? = isFaulty(profile.originWriteFault) ? .inputOutput : nil
        var done: UInt64 = 0
        if fault != nil {
            coverage.hit(.originWriteFault)
            device.requests[Int(request)].isFaultInjected = true
            // A torn write: some of it arrived.
            apply(device, request, offset, UInt64(random.below(Int(length) + 1)))
        } else {
            done = transferred(length)
            apply(device, request, offset, done)
            device.requests[Int(request)].appliedEnd = offset + done
        }
        switch device.engine.originWriteFinished(
            RequestIndex(request), byteCount: done, fault: fault)
        {
        case .finish(let fault): finished(number, request, fault)
        case .taken:
            // What it waits for next has a limit of its own.
            device.requests[Int(request)].isIssued = false
            device.requests[Int(request)].waitStart = now
            device.requests[Int(request)].heldSince = now
        }
    }

    private func completeCopyRead(
        _ device: SimulatedDevice, _ copy: CopyIndex, _ offset: UInt64, _ length: UInt64,
        _ isRead: Bool
    ) {
        var checksums = [UInt32](repeating: 0, count: 16)
        if isFaulty(profile.copyReadFault) {
            coverage.hit(.copyReadFault)
            device.engine.copyReadFinished(
                copy, byteCount: 0, fault: .inputOutput, zeroMask: 0, checksums: &checksums)
            return
        }
        if !isRead { readCopy(device, copy, offset, length) }
        let done = transferred(length)
        for (position, index) in device.engine.buffers(of: copy).enumerated() {
            let valid = done - min(done, UInt64(position) * 4096)
            if done < length, valid < 4096 { spoil(buffer(index), valid, 4096) }
        }
        var zeroMask: UInt16 = 0
        for (position, index) in device.engine.buffers(of: copy).enumerated() {
            let bytes = UnsafeRawBufferPointer(start: buffer(index), count: 4096)
            if isZero(bytes) { zeroMask |= 1 << UInt16(position) }
            checksums[position] = Checksum.crc32c(bytes)
        }
        device.engine.copyReadFinished(
            copy, byteCount: done, fault: nil, zeroMask: zeroMask, checksums: &checksums)
    }

    private func completeStorageRead(
        _ device: SimulatedDevice, _ request: UInt32, _ source: SourceIndex,
        _ byteOffset: UInt64, _ slot: StorageSlot, _ first: UInt64, _ count: Int
    ) {
        var checksums = [UInt32](repeating: 0, count: count)
        var fault: Fault?
        if isFaulty(profile.storageReadFault) {
            coverage.hit(.storageReadFault)
            fault = .inputOutput
        } else {
            let bytes = device.sources[Int(source.rawValue)]!.pointer(at: byteOffset)
            if isFaulty(profile.bitRot) {
                coverage.hit(.bitRot)
                bytes.storeBytes(
                    of: bytes.load(as: UInt8.self) ^ 4, as: UInt8.self)
            }
            for position in 0..<count {
                let block = bytes + position * 4096
                put(
                    device, RequestIndex(request), block: first + UInt64(position), from: block,
                    into: device.engine.target(of: RequestIndex(request)))
                checksums[position] = Checksum.crc32c(
                    UnsafeRawBufferPointer(start: block, count: 4096))
            }
        }
        let done = fault == nil ? transferred(UInt64(count) * 4096) : 0
        isReadSound = fault == nil && profile.bitRot == 0
        device.engine.imageStorageReadFinished(
            RequestIndex(request), slot: slot, firstBlock: first, blockCount: count,
            byteCount: done, fault: fault, checksums: &checksums)
    }

    private func completeFill(_ device: SimulatedDevice, _ request: UInt32) {
        let record = device.requests[Int(request)]
        var zeroMask: UInt16 = 0
        var checksums: [UInt32] = []
        var next = device.engine.firstBuffer(of: RequestIndex(request))
        while let (index, block) = next {
            let from = max(block * 4096, record.offset)
            let to = min((block + 1) * 4096, record.offset + record.length)
            let target = buffer(index) + Int(from - block * 4096)
            if record.operation == .write {
                target.copyMemory(
                    from: device.payload(request) + Int(from - record.offset),
                    byteCount: Int(to - from))
            } else {
                target.initializeMemory(as: UInt8.self, repeating: 0, count: Int(to - from))
            }
            let bytes = UnsafeRawBufferPointer(start: buffer(index), count: 4096)
            if isZero(bytes) { zeroMask |= 1 << UInt16(checksums.count) }
            checksums.append(Checksum.crc32c(bytes))
            next = device.engine.nextBuffer(after: index, of: RequestIndex(request))
        }
        device.engine.imageBlocksFilled(
            RequestIndex(request), zeroMask: zeroMask, checksums: &checksums)
    }

    private func answerExtent(
        _ device: SimulatedDevice, _ source: SourceIndex, _ purpose: StoragePurpose
    ) {
        let storage = device.sources[Int(source.rawValue)]!
        storage.askedCount -= 1
        if isRefused() {
            coverage.hit(.refused)
            device.engine.extentRefused(
                source, purpose, fault: random.oneIn(2) ? .noSpace : .noMemory)
            return
        }
        if isOut(device) {
            coverage.hit(.outage)
            device.engine.extentRefused(source, purpose, fault: .inputOutput)
            return
        }
        switch storage.space.extentWanted(for: purpose) {
        case .granted(let byteOffset):
            let base = UnsafeMutableRawPointer.allocate(
                byteCount: Int(storage.space.extentByteCount), alignment: 4096)
            storage.extents[byteOffset] = base
            device.engine.extentGranted(source, purpose, byteOffset: byteOffset)
        case .coming, .full:
            coverage.hit(.extentRefused)
            device.engine.extentRefused(source, purpose, fault: .noSpace)
        }
    }

    func isZero(_ bytes: UnsafeRawBufferPointer) -> Bool { !bytes.contains { $0 != 0 } }

    // MARK: Ends of requests and snapshots

    func finished(_ number: Int, _ request: UInt32, _ fault: Fault?) {
        let device = devices[number]
        let record = device.requests[Int(request)]
        device.requests[Int(request)].kind = .idle
        switch record.kind {
        case .idle:
            violate("device \(number): request \(request) finished twice")
        case .originWrite:
            if let fault {
                if !record.isFaultInjected {
                    violate("device \(number): an origin write failed with \(fault)")
                }
            } else if record.operation != .discard,
                record.appliedEnd < record.offset + record.length
            {
                violate("device \(number): a write was acknowledged before it was done")
            }
        case .imageRead:
            checkImageRead(number, request, record, fault)
        case .imageWrite:
            imageWriteFinished(number, request, record, fault)
        }
    }

    private func checkImageRead(
        _ number: Int, _ request: UInt32, _ record: SimulatedRequest, _ fault: Fault?
    ) {
        let device = devices[number]
        guard let snapshot = device.snapshots[record.snapshot] else {
            violate("an image read outlived its snapshot")
            return
        }
        if let fault {
            let isExcused =
                record.isFaultInjected || snapshot.isCorrupted || snapshot.isDestroyed
                || snapshot.isOverlayLost || !profile.isHarmless
            if !isExcused { violate("device \(number): an image read failed with \(fault)") }
            return
        }
        if snapshot.isCorrupted { violate("device \(number): a corrupted image was read") }
        let payload = device.payload(request)
        let end = record.offset + record.length
        for block in blocks(touching: ByteRange(offset: record.offset, length: record.length)) {
            if record.isOverlay {
                let isStable =
                    snapshot.writersUnderWay[Int(block)] == 0
                    && snapshot.writtenTick[Int(block)] < record.startTick
                    && !snapshot.isUnknown[Int(block)]
                if !isStable { continue }
            }
            let from = max(block * 4096, record.offset)
            let to = min((block + 1) * 4096, end)
            let expected = record.isOverlay ? snapshot.overlay : snapshot.image
            let isEqual = expected.withUnsafeBytes { bytes in
                UnsafeRawBufferPointer(rebasing: bytes[Int(from)..<Int(to)]).elementsEqual(
                    UnsafeRawBufferPointer(
                        start: payload + Int(from - record.offset), count: Int(to - from)))
            }
            if !isEqual {
                violate(
                    "device \(number): block \(block) of snapshot \(record.snapshot) (epoch "
                        + "\(snapshot.cutEpoch), overlay \(record.isOverlay)) is not as at the cut")
                return
            }
        }
        coverage.hit(.imageReadChecked)
    }

    private func imageWriteFinished(
        _ number: Int, _ request: UInt32, _ record: SimulatedRequest, _ fault: Fault?
    ) {
        let device = devices[number]
        guard let snapshot = device.snapshots[record.snapshot] else {
            violate("an image write outlived its snapshot")
            return
        }
        for block in blocks(touching: ByteRange(offset: record.offset, length: record.length)) {
            snapshot.writersUnderWay[Int(block)] -= 1
            snapshot.writtenTick[Int(block)] = tick
            if fault != nil { snapshot.isUnknown[Int(block)] = true }
        }
        if let fault {
            coverage.hit(.imageWriteFailed)
            let isExcused =
                record.isFaultInjected || snapshot.isCorrupted || snapshot.isDestroyed
                || snapshot.isOverlayLost || !profile.isHarmless
            if !isExcused { violate("device \(number): an image write failed with \(fault)") }
        }
    }

    func corrupted(_ number: Int, _ index: Int, _ fault: Fault) {
        let snapshot = devices[number].snapshots[index]!
        if snapshot.isCorrupted { violate("a snapshot was corrupted twice") }
        if isReadSound, fault == .inputOutput {
            violate("a stored block is not what was to be stored")
        }
        let limit = profile.policy.limitNanoseconds
        if fault == Fault(errnoValue: 110),
            !devices[number].requests.contains(where: {
                // The engine learns of the time at the end of a turn.
                $0.kind == .originWrite && !$0.isIssued && now - $0.heldSince + 100_000 >= limit
            })
        {
            violate("device \(number): a snapshot was given up though no writer waited for it")
        }
        snapshot.isCorrupted = true
        if profile.isHarmless, !isCutShort {
            violate("a snapshot was corrupted (\(fault)) without a cause")
        }
    }
}
