internal import BlockModel
internal import CopyOnWrite

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
        _ index: UInt32, _ snapshot: UInt16, _ overlay: Bool, _ offset: UInt64, _ length: UInt64
    ) -> Bool {
        let record = requests + Int(index)
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

    func finishImage(_ index: UInt32, _ fault: Fault?) {
        let record = requests + Int(index)
        let snapshot = record.pointee.snapshot
        precondition(record.pointee.outstanding == 0, "a request ends after its reads and writes")
        record.pointee.phase = .idle
        if !record.pointee.operation.isRead {
            removeWriter(index)
            wakeBlockedWriters(of: snapshot)
        }
        effects.append(.finish(RequestIndex(index), fault))
        snapshots[Int(snapshot)].requestCount -= 1
        finishDestroying(snapshot)
    }

    /// The image fails from now on: requests that wait for something see it at once; those with
    /// I/O under way see it when that ends.
    func endImageRequests(of snapshot: UInt16) {
        wake(&imageMemoryWaiters, of: snapshot)
        wake(&imageSpaceWaiters, of: snapshot)
        var index = snapshots[Int(snapshot)].writersHead
        while index != .max {
            if requests[Int(index)].phase == .imageBlocked { wake(index) }
            index = requests[Int(index)].delayNext
        }
    }

    private func wake(_ list: inout RequestList, of snapshot: UInt16) {
        var index = list.head
        while index != .max {
            let following = requests[Int(index)].next
            if requests[Int(index)].snapshot == snapshot {
                remove(index, from: &list)
                wake(index)
            }
            index = following
        }
    }

    // MARK: Writers of an image, in order of arrival

    /// True when a writer before `index` in the list touches one of its blocks.
    func overlapsEarlierWriter(_ index: UInt32) -> Bool {
        let record = requests[Int(index)]
        let range = ByteRange(offset: record.offset, length: record.length)
            .roundedOutward(to: blockByteCount)
        var other = snapshots[Int(record.snapshot)].writersHead
        while other != .max, other != index {
            let earlier = requests[Int(other)]
            if ByteRange(offset: earlier.offset, length: earlier.length)
                .roundedOutward(to: blockByteCount).overlaps(range)
            {
                return true
            }
            other = earlier.delayNext
        }
        return false
    }

    func appendWriter(_ index: UInt32) {
        let snapshot = snapshots + Int(requests[Int(index)].snapshot)
        let tail = snapshot.pointee.writersTail
        requests[Int(index)].delayNext = .max
        requests[Int(index)].delayPrevious = tail
        if tail == .max {
            snapshot.pointee.writersHead = index
        } else {
            requests[Int(tail)].delayNext = index
        }
        snapshot.pointee.writersTail = index
    }

    private func removeWriter(_ index: UInt32) {
        let record = requests[Int(index)]
        let snapshot = snapshots + Int(record.snapshot)
        if record.delayPrevious == .max {
            snapshot.pointee.writersHead = record.delayNext
        } else {
            requests[Int(record.delayPrevious)].delayNext = record.delayNext
        }
        if record.delayNext == .max {
            snapshot.pointee.writersTail = record.delayPrevious
        } else {
            requests[Int(record.delayNext)].delayPrevious = record.delayPrevious
        }
    }

    private func wakeBlockedWriters(of snapshot: UInt16) {
        var index = snapshots[Int(snapshot)].writersHead
        while index != .max {
            if requests[Int(index)].phase == .imageBlocked, !overlapsEarlierWriter(index) {
                wake(index)
            }
            index = requests[Int(index)].delayNext
        }
    }
}
