internal import BlockModel
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import RingIO
internal import SnapshotCore
internal import Storage

// Performs what the engine decides. Effects are taken in order; those that complete at once (inline
// origins, memory storage) feed their outcome back while the queue is being drained, which
// adds to its end.

extension Device {
    private static let askAgainNanoseconds: UInt64 = 20_000_000

    /// An event reached the engine: perform its effects now, and its batched work at the end of
    /// the turn.
    package func engineTouched() {
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
            preserver.readForCopy(copy, offset: offset, length: length)
        case .writeStorage(let batch, let source, let byteOffset, let blockCount):
            preserver.writeStorage(
                batch, source, byteOffset: byteOffset, blockCount: blockCount)
        case .readOriginForImage(let index, let offset, let length):
            preserver.readOriginForImage(index, offset: offset, length: length)
        case .readStorageForImage(
            let index, let source, let byteOffset, let slot, let firstBlock, let blockCount):
            preserver.readStorageForImage(
                index, source, byteOffset: byteOffset, slot: slot, firstBlock: firstBlock,
                blockCount: blockCount)
        case .copyFromMemory(let index, let buffer, let block, let target):
            preserver.destination(of: index, target, block: block).copyMemory(
                from: preservation.address(of: buffer), byteCount: Int(blockByteCount))
        case .fillZero(let index, let firstBlock, let blockCount, let target):
            memset(
                preserver.destination(of: index, target, block: firstBlock), 0,
                blockCount * Int(blockByteCount))
        case .fillBlocks(let index): preserver.fillBlocks(index)
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
        guard let image = requests[index].image else { return finish(index, fault) }
        image._withUnsafeGuaranteedRef { target in
            // SAFETY: only `ImageDevice.submit` sets it, to itself.
            unsafeDowncast(target, to: ImageDevice.self).finish(index, fault)
        }
    }

    private func setTimer(at time: UInt64?) {
        if let timer { loop.cancel(timer) }
        timer = time.map { loop.schedule(at: $0, preserver, token: 0) }
    }

    // MARK: Storage

    func source(_ index: SourceIndex) -> StorageSource {
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
}
