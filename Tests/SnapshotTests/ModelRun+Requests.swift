import TestSupport
import Testing

// Requests in flight, over all connections of a device, and what they leave.

extension ModelRun {
    /// Requests of one device that do not disturb one another.
    func randomBatch(of index: Int, sparing spared: ModelSnapshot? = nil) -> [ModelRequest] {
        var batch: [ModelRequest] = []
        for _ in 0..<Int.random(in: 1...24, using: &generator) {
            guard
                let next = devices[index].randomRequest(
                    beside: batch, sparing: spared, &generator)
            else { continue }
            batch.append(next)
        }
        return batch
    }

    /// Some requests at once.
    func batch() throws {
        let index = devices.indices.randomElement(using: &generator)!
        let batch = randomBatch(of: index)
        var outcome = ModelOutcome.kept
        for item in batch where item.overwrites {
            guard let newest = devices[index].newestLive else { break }
            switch devices[index].preserve(item.range, in: newest, isFailing: isFailing) {
            case .kept: break
            case .needsRoom: outcome = .needsRoom
            case .lost:
                outcome = .lost
                devices[index].lose(upTo: newest)
            }
        }
        for item in batch { try item.client.send(item.request) }
        try receive(batch, device: devices[index])
        for item in batch { devices[index].done(item) }
        try settleDiscards(batch, of: index)
        counts.operations += batch.count
        switch outcome {
        case .kept: break
        case .needsRoom: try appendStorage(to: index)
        case .lost: try awaitLoss(of: index)
        }
    }

    /// Receives the replies to all requests of a batch.
    func receive(_ batch: [ModelRequest], device: ModelDevice) throws {
        for (client, items) in Dictionary(grouping: batch, by: { ObjectIdentifier($0.client) })
            .values.map({ ($0[0].client, $0) })
        {
            try receive(items, from: client, device: device)
        }
    }

    /// What was discarded is as the device says now.
    func settleDiscards(_ batch: [ModelRequest], of index: Int) throws {
        for item in batch where item.request.command == .trim {
            let bytes = try devices[index].clients[0].read(item.request.offset, item.range.count)
            let isRight = devices[index].discarded(item.range, nowReads: bytes)
            #expect(isRight, "\(where_): discarded \(item.range) of \(devices[index].name)")
        }
    }

    private func receive(
        _ items: [ModelRequest], from client: NBDClient, device: ModelDevice
    ) throws {
        var waiting = Dictionary(uniqueKeysWithValues: items.map { ($0.request.cookie, $0) })
        var replies: [UInt64: NBDReply] = [:]
        while !waiting.isEmpty {
            let chunk = try client.receiveChunk()
            replies[chunk.cookie, default: NBDReply(cookie: chunk.cookie, chunks: [])]
                .chunks.append(chunk)
            guard chunk.isDone else { continue }
            guard let item = waiting.removeValue(forKey: chunk.cookie),
                let reply = replies.removeValue(forKey: chunk.cookie)
            else { throw TestFailure("a reply to nothing") }
            try check(item, reply, device)
        }
    }

    private func check(_ item: ModelRequest, _ reply: NBDReply, _ device: ModelDevice) throws {
        let what =
            "\(where_): \(item.request.command) of \(item.range) on \(device.name) \(item.target)"
        if let error = reply.error {
            // Beside the write that costs the image, it may fail or not.
            if let image = item.target.image, device.images[image].isLost,
                error == NBD.ErrorNumber.inputOutput
            {
                return
            }
            throw TestFailure("\(what): error \(error)")
        }
        guard let expected = item.expected else { return }
        let found = try reply.data(offset: item.request.offset, length: item.range.count)
        guard let place = expected.firstDifference(from: found) else { return }
        Issue.record("\(what) differs at \(item.range.lowerBound + place)")
        throw TestFailure("wrong data")
    }
}
