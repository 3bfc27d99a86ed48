import TestSupport
import Testing

// Takes and destroys with requests in flight: each request is wholly in the images or wholly out.

extension ModelRun {
    /// Nothing fails now and nothing is about to: only then is it certain where blocks go.
    private var isSound: Bool { !isFailing && !snapshots.contains(where: \.usesFaulty) }

    /// Sends a batch to each of `indexes`, and runs `action` while they are in flight.
    private func race(
        _ indexes: [Int], sparing spared: ModelSnapshot? = nil,
        with action: @escaping @Sendable () throws -> Void
    ) throws -> [(index: Int, batch: [ModelRequest])] {
        let batches = indexes.map { ($0, randomBatch(of: $0, sparing: spared)) }
        let isFirst = Bool.random(using: &generator)
        let early = isFirst ? Background(action) : nil
        for (_, batch) in batches {
            for item in batch { try item.client.send(item.request) }
        }
        let background = early ?? Background(action)
        for (index, batch) in batches {
            try receive(batch, device: devices[index])
            counts.operations += batch.count
        }
        try background.value()
        counts.races += 1
        return batches
    }

    func takeUnderLoad() throws {
        let chosen = randomDevices()
        guard isSound, !chosen.isEmpty else { return }
        let (snapshot, storage) = randomSnapshot(withFaulty: false)
        let names = chosen.map { devices[$0].name }
        let name = snapshot.name
        let policy = snapshot.isThrottled ? "throttle:60" : "break"
        let batches = try race(chosen) { [harness] in
            try ModelRun.takeUntilCut {
                try harness.take(
                    name, of: names, storage: storage, limit: 160 * mebibyte, onOverflow: policy)
            }
        }
        snapshots.append(snapshot)
        for (index, batch) in batches {
            let before = devices[index].contents
            try addImage(snapshot, to: index, contents: before)
            for item in batch where item.target == .origin {
                try settle(item, at: index, before: before)
            }
            let image = devices[index].images.count - 1
            devices[index].images[image].overlay = devices[index].images[image].contents
            for item in batch { devices[index].done(item) }
            try settleDiscards(batch, of: index)
        }
    }

    /// Looks in the newest image whether it has a request that was in flight at its cut.
    private func settle(_ item: ModelRequest, at index: Int, before: [UInt8]) throws {
        guard item.request.command != .read else { return }
        let newest = devices[index].images.count - 1
        let start = item.range.lowerBound
        let found = try devices[index].images[newest].readers[0].read(
            item.request.offset, item.range.count)
        let after =
            item.request.command == .write
            ? item.request.payload : [UInt8](repeating: 0, count: item.range.count)
        let isOut = before.firstDifference(from: found, at: start) == nil
        let isIn = after.firstDifference(from: found) == nil
        let isRight =
            isOut || isIn
            || (item.request.command == .trim
                && devices[index].isMixture(of: before, at: item.range, found))
        #expect(
            isRight,
            "\(where_): \(item.request.command) of \(item.range) is partly in \(devices[index].name)@s"
        )
        devices[index].images[newest].contents.overwrite(at: start, with: found)
        guard item.overwrites else { return }
        if isOut, isIn {
            // It changed nothing, so nobody can tell which layer has its blocks: the same bytes
            // once more, behind the cut, put them into the newest.
            try devices[index].clients[0].write(item.request.offset, after)
        }
        let older = devices[index].images[..<newest].lastIndex { !$0.isLost }
        if let layer = isOut ? newest : older {
            _ = devices[index].preserve(item.range, in: layer, isFailing: false)
        }
    }

    func destroyUnderLoad() throws {
        guard isSound, let snapshot = snapshots.randomElement(using: &generator) else { return }
        try checkImages(of: snapshot)
        let concerned = devices.indices.filter { index in
            devices[index].images.contains { $0.snapshot === snapshot }
        }
        let name = snapshot.name
        let batches = try race(concerned, sparing: snapshot) { [harness] in
            try harness.destroy(name)
        }
        for (index, batch) in batches {
            for item in batch {
                if item.overwrites, let newest = devices[index].newestLive {
                    _ = devices[index].preserve(item.range, in: newest, isFailing: false)
                }
                devices[index].done(item)
            }
        }
        forget(snapshot)
        for (index, batch) in batches { try settleDiscards(batch, of: index) }
    }
}
