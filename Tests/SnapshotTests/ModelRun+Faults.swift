import Glibc
import TestSupport
import Testing

// Faults on purpose. Before each, and before each take and destroy beside the faulty source, the
// service is quiet: what was preserved is stored, so the oracle knows where everything lies.

extension ModelRun {
    /// The storage that fails writes begins or ends to do so.
    func toggleFailure() throws {
        guard let (disk, _) = faultyStorage else { return }
        if isFailing {
            // What was preserved last may not have met the failure yet.
            try awaitStored()
            try disk.clearFaults()
            isFailing = false
        } else if snapshots.contains(where: \.usesFaulty) {
            try awaitStored()
            try disk.fail("write", at: 1, with: EIO, lasting: true)
            isFailing = true
            counts.faults += 1
            for index in devices.indices { devices[index].isFaultyUnsafe = true }
        }
    }

    /// Reads of the storage fail for some reads of images, one after the other.
    func failReads() throws {
        guard let (disk, _) = faultyStorage, !isFailing,
            let index = devices.indices.filter({ devices[$0].usesFaulty })
                .randomElement(using: &generator)
        else { return }
        try awaitStored()
        try disk.fail("read", at: 1, with: EIO, lasting: true)
        counts.faults += 1
        defer { try? disk.clearFaults() }
        for _ in 0..<8 {
            guard
                let image = devices[index].images.indices.filter({
                    !devices[index].images[$0].isLost
                }).randomElement(using: &generator)
            else { return }
            let range = devices[index].randomRange(&generator)
            let reply = try devices[index].images[image].readers[0].perform(
                NBDRequest(
                    .read, offset: UInt64(range.lowerBound), length: UInt64(range.count)))
            counts.operations += 1
            if let layer = devices[index].faultyLayer(under: range, of: image) {
                #expect(
                    reply.error == NBD.ErrorNumber.inputOutput,
                    "\(where_): \(range) of \(devices[index].name) image \(image) lies there")
                counts.lostImages += devices[index].images[...layer].count { !$0.isLost }
                devices[index].lose(upTo: layer)
            } else {
                guard reply.error == nil else {
                    let shown = try harness.show(devices[index].images[image].snapshot.name)
                    throw TestFailure(
                        "\(where_): \(range) of \(devices[index].name) image \(image): "
                            + "\(reply.error!), \(shown["devices"] ?? "")")
                }
                let found = try reply.data(offset: UInt64(range.lowerBound), length: range.count)
                let difference = devices[index].images[image].contents.firstDifference(
                    from: found, at: range.lowerBound)
                #expect(difference == nil, "\(where_): \(range) of image \(image)")
            }
        }
    }

    /// The last device's origin fails the reads that preserve; its writes go on.
    func failOrigin() throws {
        let index = devices.count - 1
        guard let faultyOrigin, let newest = devices[index].newestLive else { return }
        try awaitStored()
        try faultyOrigin.fail("read", at: 1, with: EIO, lasting: true)
        counts.faults += 1
        // Whole blocks: the device itself has nothing to read for them.
        let wanted = devices[index].randomRange(&generator)
        let range =
            wanted.lowerBound / 4096 * 4096..<(wanted.upperBound + 4095) / 4096 * 4096
        let bytes = generator.bytes(range.count)
        let isLoss = (range.lowerBound / 4096..<(range.upperBound + 4095) / 4096).contains {
            devices[index].images[newest].places[$0] == .none
        }
        try devices[index].clients[0].write(UInt64(range.lowerBound), bytes)
        counts.operations += 1
        devices[index].contents.overwrite(at: range.lowerBound, with: bytes)
        if isLoss {
            devices[index].lose(upTo: newest)
            try awaitLoss(of: index)
        }
        try faultyOrigin.clearFaults()
    }

    /// Room for blocks that wait in memory, in a patient snapshot of the device.
    func appendStorage(to index: Int) throws {
        guard
            let patient = devices[index].images.last(where: {
                !$0.isLost && $0.snapshot.isThrottled
            })?.snapshot
        else { throw TestFailure("\(where_): nobody is patient") }
        try harness.ask(
            "POST", "/v1/snapshots/\(patient.name)/storage", ["storage": ["memory:160M"]])
        patient.sources.append(false)
        counts.appends += 1
    }

    /// Waits until all images of a device that the oracle gave up fail.
    func awaitLoss(of index: Int) throws {
        let deadline = monotonicSeconds() + 60
        for image in devices[index].images where image.isLost {
            counts.lostImages += 1
            while try image.readers[0].perform(NBDRequest(.read, length: 512)).error
                != NBD.ErrorNumber.inputOutput
            {
                guard monotonicSeconds() < deadline else {
                    let name = "\(devices[index].name)@\(image.snapshot.name)"
                    throw TestFailure("\(where_): \(name) should be lost")
                }
            }
        }
    }

    /// Waits until no preserved block is in memory only.
    func awaitStored() throws {
        for snapshot in snapshots { try harness.awaitStored(snapshot.name) }
    }
}
