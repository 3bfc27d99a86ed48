package import BlockModel
package import ControlDocuments
internal import DataPlane
package import DeviceManagement
internal import Devices
internal import Host

/// A question about changes as it came from outside.
package struct ChangesRequest: Sendable {
    var device: String
    /// The name of the cut that the question begins at, or `CheckpointRequest.generationName`; nil:
    /// everything counts as changed.
    package var since: String?
    /// The held snapshot whose image is asked about; nil: the device until now.
    package var until: String?
    /// First byte that is asked about.
    package var offset: UInt64 = 0
    /// Bytes that are asked about; nil: all behind `offset`.
    package var length: UInt64?
    /// Ranges of a page at most, up to `rangeCountMax`.
    package var limit: Int = Self.rangeCountStandard
    /// What a continuation names of the page before: its generation.
    package var generation: Generation?
    /// What a continuation names of the page before: the cut that the question begins at.
    package var sinceEpoch: UInt32?
    /// What a continuation names of the page before: the epoch that the answer reaches to.
    package var untilEpoch: UInt32?

    package init(
        device: String, since: String? = nil, until: String? = nil, offset: UInt64 = 0,
        length: UInt64? = nil, limit: Int = Self.rangeCountStandard, generation: Generation? = nil,
        sinceEpoch: UInt32? = nil, untilEpoch: UInt32? = nil
    ) {
        self.device = device
        self.since = since
        self.until = until
        self.offset = offset
        self.length = length
        self.limit = limit
        self.generation = generation
        self.sinceEpoch = sinceEpoch
        self.untilEpoch = untilEpoch
    }

    /// Ranges of a page unless it is asked for fewer or more.
    static let rangeCountStandard = 4096
    /// Most ranges of a page.
    package static let rangeCountMax = 65536
}

/// A page of an answer; its ranges apart from the document that describes it.
package struct ChangesAnswer: Sendable {
    /// The page without its ranges.
    package var document: ChangesDocument
    /// The changed ranges, in the order of the device.
    package var ranges: [ByteRange]
}

/// Answers questions about changes, and takes marks by hand.
package struct ChangeQueries: Sendable {
    /// The devices that questions are about.
    package let devices: DeviceRegistry
    let snapshots: SnapshotRegistry
    /// The checkpoints that questions can name.
    package let checkpoints: CheckpointRegistry

    package init(
        devices: DeviceRegistry, snapshots: SnapshotRegistry, checkpoints: CheckpointRegistry
    ) {
        self.devices = devices
        self.snapshots = snapshots
        self.checkpoints = checkpoints
    }

    /// Most ranges of one mark.
    static let markCountMax = 1024

    /// A page of an answer.
    package func page(_ request: ChangesRequest) async throws -> ChangesAnswer {
        let name = try Self.deviceName(request.device)
        return try await devices.pinning([name]) { devices in
            try await page(request, of: name, devices[0])
        }
    }

    private func page(
        _ request: ChangesRequest, of name: ObjectName, _ device: AttachedDevice
    ) async throws -> ChangesAnswer {
        var query = ChangesQuery(since: .everything, until: nil)
        var sinceName: String?
        if let text = request.since {
            if text == CheckpointRequest.generationName {
                query.since = .generation
                sinceName = text
            } else {
                let found = try checkpoints.base(of: name, named: text)
                query.since = .base(found.base)
                sinceName = found.name.text
            }
        }
        var untilName: String?
        if let text = request.until {
            let image = try await snapshots.image(of: name, at: text)
            query.end(at: image.snapshot)
            untilName = image.label.description
        }
        if let epoch = request.sinceEpoch, epoch != query.sinceEpoch {
            throw Self.refusal(.changed, name, request)
        }
        query.offset = request.offset
        query.length = request.length
        query.rangeCountMax = request.limit
        query.expected = .init(generation: request.generation, untilEpoch: request.untilEpoch)
        switch await device.changes(query) {
        case .failure(let refusal): throw Self.refusal(refusal, name, request)
        case .success(let page):
            let document = ChangesDocument(
                device: name.text, generation: page.generation.description,
                full: query.sinceEpoch == nil,
                since: query.sinceEpoch.map { .init(name: sinceName, epoch: $0) },
                until: .init(name: untilName, epoch: page.untilEpoch), size: page.size,
                changedBytes: page.ranges.reduce(0) { $0 + $1.length }, ranges: [],
                nextOffset: page.nextOffset)
            return ChangesAnswer(document: document, ranges: page.ranges)
        }
    }

    /// Declares ranges as changed, all or none.
    package func mark(
        _ document: ChangesMarkDocument, on text: String
    ) async throws -> ChangesMarkedDocument {
        let name = try Self.deviceName(text)
        guard (1...Self.markCountMax).contains(document.ranges.count) else {
            throw ControlError(
                .invalid, "give 1 to \(Self.markCountMax) ranges to mark")
        }
        var ranges: [ByteRange] = []
        for range in document.ranges {
            let text = "range \(range.offset):\(range.length)"
            guard range.length > 0 else {
                throw ControlError(.invalid, "\(text) is empty; give the bytes to mark")
            }
            guard !range.offset.addingReportingOverflow(range.length).overflow else {
                throw ControlError(.invalid, "\(text) is beyond any device")
            }
            ranges.append(ByteRange(offset: range.offset, length: range.length))
        }
        let marks = ranges
        try await devices.pinning([name]) { devices in
            let blocking = self.devices.blocking
            if let refusal = await devices[0].mark(marks, blocking: blocking) {
                throw Self.refusal(refusal, name, ChangesRequest(device: text))
            }
        }
        return ChangesMarkedDocument(device: name.text, ranges: document.ranges)
    }

    static func deviceName(_ text: String) throws(ControlError) -> ObjectName {
        guard let name = ObjectName(text) else {
            throw ControlError.noSuchDevice(text)
        }
        return name
    }

    static func refusal(
        _ refusal: ChangesRefusal, _ device: ObjectName, _ request: ChangesRequest
    ) -> ControlError {
        let since = request.since ?? "the begin"
        let until = request.until ?? "now"
        return switch refusal {
        case .generationUnknown:
            ControlError(
                .generationUnknown,
                "what changed on device \(device) since \(since) until \(until) is not known: a new "
                    + "tracking history has begun; make a full backup")
        case .damaged:
            ControlError(
                .generationUnknown,
                "what changed on device \(device) is not known: its change map is damaged and a "
                    + "new history begins; make a full backup")
        case .changed:
            ControlError(
                .changed,
                "device \(device) was cut or began a new history since the page before; ask again "
                    + "from the first page, or until a held snapshot, which stays as it is")
        case .sinceIsLater:
            ControlError(
                .invalid,
                "the cut of \(since) is later than that of \(until) on device \(device); name "
                    + "an earlier one")
        case .notTaken:
            ControlError(.notHeld, "snapshot \(until) is not taken yet; take it first")
        case .notHeld:
            ControlError(
                .notHeld, "snapshot \(until) is no longer held; name another one, or ask up to now")
        case .corrupted:
            ControlError(
                .corrupted,
                "snapshot \(until): the image of device \(device) lost data, and with it what "
                    + "changed before its cut; take a new snapshot")
        case .failed(let fault):
            ControlError(
                .failed,
                "device \(device): its origin cannot say where its holes are "
                    + "(\(errnoText(fault.errnoValue)))")
        case .beyondEnd(let size):
            ControlError(
                .invalid,
                "a range reaches beyond the end of device \(device), which has \(size) bytes; "
                    + "nothing was marked")
        case .noMemory:
            ControlError(
                .noSpace,
                "device \(device) has no memory left for so many marks; nothing was marked")
        case .tooManyForSnapshot:
            ControlError(
                .noSpace,
                "a snapshot of device \(device) cannot remember that many marks; nothing was "
                    + "marked; mark less, or destroy the snapshot first")
        case .busy:
            ControlError(.busy, "device \(device) is too busy to answer; try again in a moment")
        }
    }
}
