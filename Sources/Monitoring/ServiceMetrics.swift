package import ControlDocuments
internal import BlockModel
package import DataPlane
package import Devices
internal import RingIO

// What `GET /metrics` tells, gathered from the registries and the loops at each scrape. Names and
// units follow Prometheus' conventions: base units, `_total` for what only rises.

/// What the service measures, at one moment.
package struct ServiceMetrics: Sendable {
    var version: String
    var process: ProcessUsage
    var loops: [(index: Int, usage: LoopUsage)]
    var devices: [(document: DeviceDocument, activity: DeviceActivity)]
    var missingCount: Int
    var snapshots: [SnapshotDocument]
    var cuts: CutStatistics
    var events: [(kind: String, count: UInt64)]
    var requests: [(status: Int, count: UInt64)]
    var pageRequests: [(status: Int, count: UInt64)]
    var newestCheckpoints: [String: NewestCheckpoint]
    var copies: [CopyJobDocument]
    var blocks: [BlockDocument]

    package init(
        version: String, process: ProcessUsage, loops: [(index: Int, usage: LoopUsage)],
        devices: [(document: DeviceDocument, activity: DeviceActivity)], missingCount: Int,
        snapshots: [SnapshotDocument], cuts: CutStatistics,
        events: [(kind: String, count: UInt64)], requests: [(status: Int, count: UInt64)],
        pageRequests: [(status: Int, count: UInt64)],
        newestCheckpoints: [String: NewestCheckpoint], copies: [CopyJobDocument],
        blocks: [BlockDocument]
    ) {
        self.version = version
        self.process = process
        self.loops = loops
        self.devices = devices
        self.missingCount = missingCount
        self.snapshots = snapshots
        self.cuts = cuts
        self.events = events
        self.requests = requests
        self.pageRequests = pageRequests
        self.newestCheckpoints = newestCheckpoints
        self.copies = copies
        self.blocks = blocks
    }

    /// The document.
    package var text: String {
        var text = MetricsText()
        addService(to: &text)
        addDevices(to: &text)
        addGenerations(to: &text)
        addCopies(to: &text)
        addBlocks(to: &text)
        addRequests(to: &text)
        addSnapshots(to: &text)
        addLoops(to: &text)
        return text.text
    }

    private func addService(to text: inout MetricsText) {
        text.family("stillpoint_build_info", .gauge, "Version of the service; always 1.")
        text.sample(UInt64(1), [("version", version)])
        text.family("process_start_time_seconds", .gauge, "Start of the service, Unix time.")
        text.sample(process.startedSeconds)
        text.family("process_cpu_seconds_total", .counter, "Processor time, user and system.")
        text.sample(process.cpuSeconds)
        text.family("process_resident_memory_bytes", .gauge, "Resident memory.")
        text.sample(process.residentBytes)
        text.family("process_open_fds", .gauge, "Open descriptors.")
        text.sample(process.descriptorCount)
        text.family("process_max_fds", .gauge, "Descriptors that may be open.")
        text.sample(process.descriptorCountMax)
        text.family(
            "stillpoint_http_requests_total", .counter,
            "Requests to the control socket that were answered, by status.")
        for request in requests {
            text.sample(request.count, [("status", "\(request.status)")])
        }
        text.family(
            "stillpoint_page_requests_total", .counter,
            "Requests to the page's listeners (--http) that were answered, by status.")
        for request in pageRequests {
            text.sample(request.count, [("status", "\(request.status)")])
        }
        text.family("stillpoint_events_total", .counter, "Events recorded, by type.")
        for event in events { text.sample(event.count, [("type", event.kind)]) }
    }

    // -- devices

    private func addDevices(to text: inout MetricsText) {
        text.family("stillpoint_devices", .gauge, "Devices that are attached.")
        text.sample(UInt64(devices.count))
        text.family(
            "stillpoint_devices_missing", .gauge,
            "Devices that are remembered and could not be attached.")
        text.sample(UInt64(missingCount))
        each(
            &text, "stillpoint_device_size_bytes", .gauge, "Size of the device.",
            \.document.size)
        each(&text, "stillpoint_device_epoch", .gauge, "Epoch in which changes are marked now.") {
            UInt64($0.activity.epoch.rawValue)
        }
        each(&text, "stillpoint_device_users", .gauge, "Connections and block attachments.") {
            UInt64($0.document.connections)
        }
        each(
            &text, "stillpoint_device_snapshots", .gauge, "Snapshots that the device is in."
        ) { UInt64($0.document.snapshots.count) }
        each(
            &text, "stillpoint_copied_blocks_total", .counter,
            "Blocks of 4 KiB read in order to preserve them."
        ) { $0.activity.counters.copiedBytes / blockByteCount }
        each(
            &text, "stillpoint_copied_bytes_total", .counter,
            "Bytes of old data read in order to preserve it."
        ) { $0.activity.counters.copiedBytes }
        each(
            &text, "stillpoint_parked_writes_total", .counter,
            "Writes that waited for a cut, a copy or memory."
        ) { $0.activity.counters.parkedWrites }
    }

    func each(
        _ text: inout MetricsText, _ name: String, _ kind: MetricsText.Kind, _ help: String,
        _ value: ((document: DeviceDocument, activity: DeviceActivity)) -> UInt64
    ) {
        text.family(name, kind, help)
        for device in devices { text.sample(value(device), [("device", device.document.name)]) }
    }

    private func addRequests(to text: inout MetricsText) {
        text.family(
            "stillpoint_request_duration_seconds", .histogram,
            "Time from a request's arrival at the device or its images until it was finished.")
        eachOperation { labels, report in text.sample(report.durations, labels) }
        text.family("stillpoint_requests_total", .counter, "Requests finished.")
        eachOperation { labels, report in text.sample(report.durations.total, labels) }
        text.family("stillpoint_request_failures_total", .counter, "Requests that failed.")
        eachOperation { labels, report in text.sample(report.failureCount, labels) }
        text.family(
            "stillpoint_request_bytes_total", .counter, "Bytes that finished requests were about.")
        eachOperation { labels, report in text.sample(report.byteCount, labels) }
    }

    private func eachOperation(_ body: (MetricsText.Labels, OperationReport) -> Void) {
        for device in devices {
            let kinds = [
                ("device", device.activity.requests), ("image", device.activity.imageRequests),
            ]
            for (target, reports) in kinds {
                for report in reports {
                    let labels = [
                        ("device", device.document.name), ("target", target),
                        ("operation", report.operation.metricName),
                    ]
                    body(labels, report)
                }
            }
        }
    }

    // -- snapshots

    private func addSnapshots(to text: inout MetricsText) {
        text.family("stillpoint_snapshots", .gauge, "Snapshots by state.")
        for state in ["prepared", "held", "corrupted"] {
            text.sample(UInt64(snapshots.count { $0.state == state }), [("state", state)])
        }
        text.family(
            "stillpoint_cut_duration_seconds", .histogram,
            "Time from the first gate's closing until the last one was open again.")
        text.sample(cuts.closed)
        text.family(
            "stillpoint_cut_drain_seconds", .histogram,
            "The part of a cut that was spent waiting for writes in flight.")
        text.sample(cuts.drained)
        text.family(
            "stillpoint_cuts_called_off_total", .counter,
            "Cuts that would have taken too long and changed nothing.")
        text.sample(cuts.calledOffCount)
        storage(&text, "used_bytes", "Space handed out to devices, in extents.", \.used)
        storage(&text, "capacity_bytes", "Space that is there.", \.capacity)
        storage(&text, "limit_bytes", "Size up to which the storage may grow.", \.limit)
        storage(&text, "stored_bytes", "Preserved blocks that take space.", \.storedBytes)
        storage(&text, "zero_blocks", "Preserved blocks that are zero.", \.zeroBlocks)
        storage(&text, "available_bytes", "Space that can still be handed out.", \.available)
        addStates(to: &text)
    }

    private func addStates(to text: inout MetricsText) {
        text.family(
            "stillpoint_snapshot_storage_seconds_to_full", .gauge,
            "Time until the storage is full at the rate since the cut; absent while nothing is "
                + "stored.")
        for snapshot in snapshots {
            guard let seconds = snapshot.storage.estimatedSecondsToFull else { continue }
            text.sample(seconds, Self.labels(of: snapshot))
        }
        text.family(
            "stillpoint_snapshot_taken_timestamp_seconds", .gauge,
            "When the snapshot's cut was made, Unix time.")
        for snapshot in snapshots {
            guard let taken = snapshot.takenAt else { continue }
            text.sample(taken.timeIntervalSince1970, Self.labels(of: snapshot))
        }
        text.family(
            "stillpoint_snapshot_corrupted", .gauge,
            "1 when the image of that device lost data and fails, else 0.")
        for snapshot in snapshots {
            for device in snapshot.devices {
                text.sample(
                    UInt64(device.error == nil ? 0 : 1),
                    Self.labels(of: snapshot) + [("device", device.device)])
            }
        }
    }

    private static func labels(of snapshot: SnapshotDocument) -> MetricsText.Labels {
        [("snapshot", snapshot.id), ("name", snapshot.name ?? "")]
    }

    private func storage(
        _ text: inout MetricsText, _ name: String, _ help: String,
        _ value: (SnapshotDocument.Storage) -> UInt64
    ) {
        text.family("stillpoint_snapshot_storage_\(name)", .gauge, help)
        for snapshot in snapshots {
            text.sample(value(snapshot.storage), Self.labels(of: snapshot))
        }
    }

    // -- loops

    private func addLoops(to text: inout MetricsText) {
        loop(&text, "request_buffer_bytes", "Payload buffers in use.", \.bufferByteCount)
        loop(&text, "request_buffer_limit_bytes", "Payload buffers, at most.", \.bufferCapacity)
        loop(
            &text, "preserve_buffer_bytes", "Preserved data that is not stored yet.",
            \.preservedByteCount)
        loop(
            &text, "preserve_buffer_limit_bytes", "Preserved data that may wait to be stored.",
            \.preservedCapacity)
        loop(&text, "requests_in_flight", "Requests under way.", \.requestCount)
        loop(&text, "requests_in_flight_limit", "Requests in flight, at most.", \.requestCapacity)
        addHolds(to: &text)
    }

    /// Only where they are measured (`STILLPOINT_MEASURE_HOLDS`).
    private func addHolds(to text: inout MetricsText) {
        let measured = loops.compactMap { loop in loop.usage.holds.map { (loop.index, $0) } }
        guard !measured.isEmpty else { return }
        text.family(
            "stillpoint_loop_longest_hold_seconds", .gauge,
            "Processor time of the longest call that held the loop.")
        for (index, holds) in measured {
            text.sample(Double(holds.longestNanoseconds) / 1e9, [("loop", "\(index)")])
        }
        text.family(
            "stillpoint_loop_long_holds_total", .counter,
            "Calls that held the loop for more than 1 ms of processor time.")
        for (index, holds) in measured { text.sample(holds.longCount, [("loop", "\(index)")]) }
        text.family(
            "stillpoint_loop_measured_calls_total", .counter, "Calls that were measured.")
        for (index, holds) in measured { text.sample(holds.callCount, [("loop", "\(index)")]) }
    }

    private func loop(
        _ text: inout MetricsText, _ name: String, _ help: String,
        _ value: (LoopUsage) -> UInt64
    ) {
        text.family("stillpoint_loop_\(name)", .gauge, help)
        for loop in loops { text.sample(value(loop.usage), [("loop", "\(loop.index)")]) }
    }
}

extension RequestOperation {
    /// As metrics name it.
    fileprivate var metricName: String {
        switch self {
        case .read: "read"
        case .write: "write"
        case .flush: "flush"
        case .discard: "discard"
        case .writeZeroes: "write_zeroes"
        case .prefetch: "prefetch"
        case .blockStatus: "block_status"
        }
    }
}
