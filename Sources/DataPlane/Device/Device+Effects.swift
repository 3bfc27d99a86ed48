internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import RingIO
internal import SnapshotCore
internal import Storage

// Performs what the engine decides. Effects are taken in order; those that complete at once (inline
// origins, memory storage) feed their outcome back while the queue is being drained, which
// adds to its end.

/// What a timer of a `Preserver` is for; its token.
enum PreserverTimer: UInt32 {
    /// The engine's.
    case engine
    /// Extents are asked for again.
    case extents
}

extension Device {
    private static let askAgainNanoseconds: UInt64 = 20_000_000

    /// An event reached the engine: perform its effects now, and its batched work at the end of
    /// the turn.
    func engineTouched() {
        drainEffects()
        callAtEndOfTurn()
    }

    func drainEffects() {
        guard !isDraining else { return }
        isDraining = true
        while let effect = engine.nextEffect() { perform(effect) }
        isDraining = false
        guard !goneParts.isEmpty else { return }
        let gone = goneParts
        goneParts = []
        for part in gone { part.gone() }
    }

    private func perform(_ effect: Effect) {
        switch effect {
        case .issue(let index): origin.writeArrived(index)
        case .issuePart(let index, let offset, let length):
            requests[index].part = ByteRange(offset: offset, length: length)
            origin.zeroingArrived(index)
        case .findHoles(let index, let offset, let length):
            origin.findHoles(ByteRange(offset: offset, length: length), for: index)
        case .finish(let index, let fault): finishFromEngine(index, fault)
        case .readOrigin(let copy, let offset, let length):
            readForCopy(copy, offset: offset, length: length)
        case .writeStorage(let batch, let source, let byteOffset, let blockCount):
            writeStorage(batch, source, byteOffset: byteOffset, blockCount: blockCount)
        case .readOriginForImage(let index, let offset, let length):
            readOriginForImage(index, offset: offset, length: length)
        case .readStorageForImage(
            let index, let source, let byteOffset, let slot, let firstBlock, let blockCount):
            readStorageForImage(
                index, source, byteOffset: byteOffset, slot: slot, firstBlock: firstBlock,
                blockCount: blockCount)
        case .copyFromMemory(let index, let buffer, let block, let target):
            destination(of: index, target, block: block).copyMemory(
                from: preservation.address(of: buffer), byteCount: Int(blockByteCount))
        case .fillZero(let index, let firstBlock, let blockCount, let target):
            memset(
                destination(of: index, target, block: firstBlock), 0,
                blockCount * Int(blockByteCount))
        case .fillBlocks(let index): fillBlocks(index)
        case .requestExtent(let source, let purpose): requestExtent(source, purpose)
        case .releaseExtent(let source, let byteOffset):
            sources[Int(source.rawValue)]?.extentReleased(byteOffset: byteOffset)
        case .sourceClosed(let source): sources[Int(source.rawValue)]?.userAsksNoMore()
        case .sourceDrained(let source):
            sources[Int(source.rawValue)]?.drained()
            sources[Int(source.rawValue)] = nil
        case .reserveMapPage(let page): reserveMapPage(page)
        case .gateDrained:
            let drained = gateDrained
            gateDrained = nil
            drained?()
        case .snapshotCorrupted(let snapshot, let fault):
            parts[Int(snapshot.rawValue)]?.corrupted(fault)
        case .overlayCorrupted(let snapshot, let fault):
            parts[Int(snapshot.rawValue)]?.overlayCorrupted(fault)
        case .snapshotGone(let snapshot):
            if let part = parts[Int(snapshot.rawValue)] { goneParts.append(part) }
            parts[Int(snapshot.rawValue)] = nil
            preservation.snapshotGone(of: self)
        case .timer(let time): setTimer(at: time)
        }
    }

    private func finishFromEngine(_ index: RequestIndex, _ fault: Fault?) {
        // Image requests belong to their image's count, not to the device's.
        if let image = requests[index].image {
            image._withUnsafeGuaranteedRef { $0.engineFinished(index, fault) }
        } else {
            finish(index, fault)
        }
    }

    private func setTimer(at time: UInt64) {
        if let timer { loop.cancel(timer) }
        timer = time == .max ? nil : loop.schedule(at: time, preserver, token: 0)
    }

    // MARK: Copies

    private func readForCopy(_ copy: CopyIndex, offset: UInt64, length: UInt64) {
        let buffers = engine.buffers(of: copy)
        // A copy costs about three times its read: it is looked at, and stored.
        let isInline =
            origin.facts.accessMode == .inline && loop.takeInline(byteCount: Int(length) * 3)
        if buffers.count == 1, length == blockByteCount, isInline {
            // The common case, an aligned 4 KiB write, without the vectors.
            let result = pread(
                origin.descriptor, preservation.address(of: buffers[0]), Int(length),
                off_t(offset))
            return copyReadCompleted(copy, result < 0 ? -errno : Int32(result))
        }
        let vectors = preserver.copyVectors + Int(copy.rawValue) * Preserver.vectorsPerCopy
        var rest = Int(length)
        for (position, buffer) in buffers.enumerated() {
            let byteCount = min(rest, Int(blockByteCount))
            let address = preservation.address(of: buffer)
            if byteCount < Int(blockByteCount) { memset(address, 0, Int(blockByteCount)) }
            vectors[position] = iovec(iov_base: address, iov_len: byteCount)
            rest -= byteCount
        }
        if isInline {
            let result = preadv(origin.descriptor, vectors, Int32(buffers.count), off_t(offset))
            return copyReadCompleted(copy, result < 0 ? -errno : Int32(result))
        }
        loop.read(
            preserver, tag: PreserverStep.copyRead.rawValue, token: copy.rawValue,
            descriptor: origin.descriptor, vectors: vectors, count: buffers.count, offset: offset)
    }

    func copyReadCompleted(_ copy: CopyIndex, _ result: Int32) {
        withChecks(engine.buffers(of: copy), isValid: result > 0) { zeroMask, checksums in
            // Interrupted is as good as nothing read: the engine asks again.
            let isAgain = result == -EINTR || result == -EAGAIN
            if result < 0, !isAgain { originFailed(Fault(errnoValue: -result)) }
            engine.copyReadFinished(
                copy, byteCount: UInt64(max(result, 0)),
                fault: result < 0 && !isAgain ? Fault(errnoValue: -result) : nil,
                zeroMask: zeroMask, checksums: checksums)
        }
    }

    /// Looks which of at most 16 blocks are zero and computes the checksums of the others.
    private func withChecks(
        _ buffers: UnsafeBufferPointer<BufferIndex>, isValid: Bool,
        _ body: (UInt16, UnsafePointer<UInt32>) -> Void
    ) {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 16) { checksums in
            var zeroMask: UInt16 = 0
            for (position, buffer) in buffers.enumerated() {
                checksums[position] = 0
                guard isValid else { continue }
                let address = preservation.address(of: buffer)
                if cl_is_zero(address, Int(blockByteCount)) {
                    zeroMask |= 1 << UInt16(position)
                } else {
                    checksums[position] = cl_crc32c(address, Int(blockByteCount))
                }
            }
            guard let base = checksums.baseAddress else {
                preconditionFailure("sixteen checksums have an address")
            }
            body(zeroMask, UnsafePointer(base))
        }
    }

    // MARK: Storage

    private func source(_ index: SourceIndex) -> StorageSource {
        guard let source = sources[Int(index.rawValue)] else {
            preconditionFailure("the engine names a source that was drained")
        }
        return source
    }

    private func requestExtent(_ index: SourceIndex, _ purpose: StoragePurpose) {
        let back = LoopConfined(self, on: loop)
        let mailbox = loop.mailbox
        let answer = source(index).extentWanted(
            for: purpose, isFirst: engine.extentCount(of: index) == 0
        ) { answer in
            let isPosted = mailbox.postWhenRoom { loop in
                let device = back.get(on: loop)
                device.awaitedExtentCount -= 1
                device.extentAnswered(index, purpose, answer)
                device.engineTouched()
            }
            precondition(isPosted, "a loop does not stop while a device waits for an extent")
        }
        guard let answer else {
            awaitedExtentCount += 1
            return
        }
        guard answer == .failure(.wouldBlock) else {
            return extentAnswered(index, purpose, answer)
        }
        askAgainSoon(index, purpose)
    }

    /// No thread could be had for what the source has to do first: it is asked again in a moment,
    /// and nothing is called full.
    private func askAgainSoon(_ index: SourceIndex, _ purpose: StoragePurpose) {
        if deferredExtentRequests.isEmpty {
            _ = loop.schedule(
                at: loop.now + Self.askAgainNanoseconds, preserver,
                token: PreserverTimer.extents.rawValue)
        }
        deferredExtentRequests.append((index, purpose))
        awaitedExtentCount += 1
    }

    /// The moment is over.
    func askForExtentsAgain() {
        let deferred = deferredExtentRequests
        deferredExtentRequests = []
        awaitedExtentCount -= deferred.count
        for (index, purpose) in deferred { requestExtent(index, purpose) }
    }

    private func extentAnswered(
        _ index: SourceIndex, _ purpose: StoragePurpose, _ answer: Result<UInt64, Fault>
    ) {
        switch answer {
        case .success(let byteOffset):
            engine.extentGranted(index, purpose, byteOffset: byteOffset)
        case .failure(let fault): engine.extentRefused(index, purpose, fault: fault)
        }
    }

    private func writeStorage(
        _ batch: BatchIndex, _ index: SourceIndex, byteOffset: UInt64, blockCount: Int
    ) {
        let buffers = engine.buffers(of: batch)
        precondition(buffers.count == blockCount, "a batch has a buffer for each block")
        let byteCount = blockCount * Int(blockByteCount)
        let access = source(index).access
        if case .memory(let address) = access {
            guard var place = UnsafeMutableRawPointer(bitPattern: address + UInt(byteOffset)) else {
                preconditionFailure("memory storage has an address")
            }
            for buffer in buffers {
                place.copyMemory(
                    from: preservation.address(of: buffer), byteCount: Int(blockByteCount))
                place += Int(blockByteCount)
            }
            return storageWriteCompleted(batch, Int32(byteCount))
        }
        let vectors = preserver.batchVectors + Int(batch.rawValue) * Preserver.vectorsPerBatch
        for (position, buffer) in buffers.enumerated() {
            vectors[position] = iovec(
                iov_base: preservation.address(of: buffer), iov_len: Int(blockByteCount))
        }
        switch access {
        case .inline(let descriptor):
            let result = pwritev(descriptor, vectors, Int32(blockCount), off_t(byteOffset))
            storageWriteCompleted(batch, result < 0 ? -errno : Int32(result))
        case .ring(let descriptor):
            loop.write(
                preserver, tag: PreserverStep.storageWrite.rawValue, token: batch.rawValue,
                descriptor: descriptor, vectors: vectors, count: blockCount, offset: byteOffset)
        case .memory: preconditionFailure("memory storage was handled above")
        }
    }

    func storageWriteCompleted(_ batch: BatchIndex, _ result: Int32) {
        let isAgain = result == -EINTR || result == -EAGAIN
        engine.storageWriteFinished(
            batch, byteCount: UInt64(max(result, 0)),
            fault: result < 0 && !isAgain ? Fault(errnoValue: -result) : nil)
    }
}
