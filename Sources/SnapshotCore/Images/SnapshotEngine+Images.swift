internal import BlockModel
internal import CopyOnWrite
internal import EngineState

// What reads and writes of images share: begin, end, and the order among writers of an image.

extension SnapshotEngine {
    /// False when the image fails its requests.
    func isReadable(_ snapshot: UInt16, overlay: Bool) -> Bool {
        let record = snapshots[Int(snapshot)]
        return record.state == .held && !(overlay && record.isOverlayLost)
    }

    /// Why the image fails its requests.
    func fault(of snapshot: UInt16) -> Fault {
        switch snapshots[Int(snapshot)].state {
        case .held, .corrupted: .inputOutput
        case .free, .prepared, .destroying: .shutdown
        }
    }

    func beginImageRequest(
        _ index: RequestIndex, _ snapshot: UInt16, _ overlay: Bool, _ offset: UInt64,
        _ length: UInt64
    ) -> Bool {
        let record = requests.pointer(to: index)
        precondition(record.pointee.phase == .idle, "a request slot is used by one request")
        guard isReadable(snapshot, overlay: overlay) else { return false }
        let size = snapshots[Int(snapshot)].size
        precondition(length > 0, "an image request has bytes")
        precondition(
            length <= size && offset <= size - length, "a request lies within the image")
        record.pointee = RequestRecord()
        record.pointee.isImage = true
        record.pointee.isOverlay = overlay
        record.pointee.snapshot = snapshot
        record.pointee.offset = offset
        record.pointee.length = length
        record.pointee.startCursor = offset / blockByteCount
        snapshots[Int(snapshot)].requestCount += 1
        return true
    }

    func finishImage(_ index: RequestIndex, _ fault: Fault?) {
        let record = requests.pointer(to: index)
        let snapshot = record.pointee.snapshot
        precondition(record.pointee.outstanding == 0, "a request ends after its reads and writes")
        record.pointee.phase = .idle
        if !record.pointee.operation.isRead {
            requests.removeByArrival(index, from: &snapshots[Int(snapshot)].writers)
            wakeBlockedWriters(of: snapshot)
        }
        effects.append(.finish(index, fault))
        snapshots[Int(snapshot)].requestCount -= 1
        finishDestroying(snapshot)
    }

    /// The image fails from now on: requests that wait for something see it at once; those with
    /// I/O under way see it when that ends.
    func endImageRequests(of snapshot: UInt16) {
        wake(&imageMemoryWaiters, of: snapshot)
        wake(&imageSpaceWaiters, of: snapshot)
        var index = snapshots[Int(snapshot)].writers.head
        while index != .none {
            if requests[index].phase == .imageBlocked { wake(index) }
            index = requests[index].delayNext
        }
    }

    private func wake(_ list: inout RequestList, of snapshot: UInt16) {
        var index = list.head
        while index != .none {
            let following = requests[index].next
            if requests[index].snapshot == snapshot {
                requests.remove(index, from: &list)
                wake(index)
            }
            index = following
        }
    }

    // MARK: Writers of an image, in order of arrival

    /// True when a writer before `index` in the list touches one of its blocks.
    func overlapsEarlierWriter(_ index: RequestIndex) -> Bool {
        let record = requests[index]
        let range = ByteRange(offset: record.offset, length: record.length)
            .roundedOutward(to: blockByteCount)
        var other = snapshots[Int(record.snapshot)].writers.head
        while other != .none, other != index {
            let earlier = requests[other]
            if ByteRange(offset: earlier.offset, length: earlier.length)
                .roundedOutward(to: blockByteCount).overlaps(range)
            {
                return true
            }
            other = earlier.delayNext
        }
        return false
    }

    private func wakeBlockedWriters(of snapshot: UInt16) {
        var index = snapshots[Int(snapshot)].writers.head
        while index != .none {
            if requests[index].phase == .imageBlocked, !overlapsEarlierWriter(index) {
                wake(index)
            }
            index = requests[index].delayNext
        }
    }
}
