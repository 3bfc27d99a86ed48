internal import BlockModel
internal import CopyOnWrite
internal import EngineState

// What reads and writes of images share: begin, end, and the order among writers of an image.

extension SnapshotEngine {
    /// False when the image fails its requests.
    func isReadable(_ snapshot: SnapshotIndex, overlay: Bool) -> Bool {
        let record = snapshots[snapshot]
        return record.state == .held && !(overlay && record.isOverlayLost)
    }

    /// Why the image fails its requests.
    func fault(of snapshot: SnapshotIndex) -> Fault {
        switch snapshots[snapshot].state {
        case .held, .corrupted: .inputOutput
        case .free, .prepared, .destroying: .shutdown
        }
    }

    /// False when the image fails its requests: nothing has begun then.
    func beginImageRequest(_ index: RequestIndex, _ request: ImageRequest) -> Bool {
        precondition(!imageRequests[index].isUsed, "a request slot is used by one request")
        guard isReadable(request.snapshot, overlay: request.isOverlay) else { return false }
        let size = snapshots[request.snapshot].size
        precondition(request.length > 0, "an image request has bytes")
        precondition(
            request.length <= size && request.offset <= size - request.length,
            "a request lies within the image")
        imageRequests[index] = request
        requests.setKind(.image, of: index)
        snapshots[request.snapshot].requestCount += 1
        return true
    }

    func finishImage(_ index: RequestIndex, _ fault: Fault?) {
        let record = imageRequests.pointer(to: index)
        let snapshot = record.pointee.snapshot
        precondition(record.pointee.outstanding == 0, "a request ends after its reads and writes")
        record.pointee.isUsed = false
        if !record.pointee.operation.isRead {
            requests.removeByArrival(index, from: &snapshots[snapshot].writers)
            wakeBlockedWriters(of: snapshot)
        }
        effects.append(.finish(index, fault))
        snapshots[snapshot].requestCount -= 1
        finishDestroying(snapshot)
    }

    /// The image fails from now on: requests that wait for something see it at once; those with
    /// I/O under way see it when that ends.
    func endImageRequests(of snapshot: SnapshotIndex) {
        wake(&imageMemoryWaiters, of: snapshot)
        wake(&imageSpaceWaiters, of: snapshot)
        var index = snapshots[snapshot].writers.head
        while index != .none {
            if case .blocked = imageRequests[index].phase { wakeImage(index) }
            index = requests.nextByArrival(after: index)
        }
    }

    private func wake(_ list: inout RequestList, of snapshot: SnapshotIndex) {
        var index = list.head
        while index != .none {
            let following = requests.next(after: index)
            if imageRequests[index].snapshot == snapshot {
                requests.remove(index, from: &list)
                wakeImage(index)
            }
            index = following
        }
    }

    // MARK: Writers of an image, in order of arrival

    /// True when a writer before `index` in the list touches one of its blocks.
    func overlapsEarlierWriter(_ index: RequestIndex) -> Bool {
        let record = imageRequests[index]
        let range = ByteRange(offset: record.offset, length: record.length)
            .roundedOutward(to: blockByteCount)
        var other = snapshots[record.snapshot].writers.head
        while other != .none, other != index {
            let earlier = imageRequests[other]
            if ByteRange(offset: earlier.offset, length: earlier.length)
                .roundedOutward(to: blockByteCount).overlaps(range)
            {
                return true
            }
            other = requests.nextByArrival(after: other)
        }
        return false
    }

    private func wakeBlockedWriters(of snapshot: SnapshotIndex) {
        var index = snapshots[snapshot].writers.head
        while index != .none {
            if case .blocked = imageRequests[index].phase, !overlapsEarlierWriter(index) {
                wakeImage(index)
            }
            index = requests.nextByArrival(after: index)
        }
    }
}
