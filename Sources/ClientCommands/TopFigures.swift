internal import ClientSupport
internal import ControlDocuments

// What `top` shows: the difference of two answers of the service, as rates.

/// Rates of the devices and the fill of the snapshots between two moments.
struct TopFigures: Codable, Equatable {
    /// Between the two moments.
    var seconds: Double
    var residentBytes: UInt64
    var devices: [Device]
    var snapshots: [ActivityDocument.Snapshot]

    /// A device.
    struct Device: Codable, Equatable {
        var name: String
        var connections: Int
        var reads: Rate
        var writes: Rate
        /// Writes that waited for a cut, a copy or memory, per second.
        var parkedWritesPerSecond: Double
        /// Old data that was read in order to preserve it.
        var copiedBytesPerSecond: Double
    }

    /// Requests of one kind.
    struct Rate: Codable, Equatable {
        var perSecond: Double
        var bytesPerSecond: Double
        /// Of a request on the average; null when there was none.
        @OrNull var latencySeconds: Double?
    }

    /// Nil when the two are of different runs of the service, which count from zero.
    init?(from before: ActivityDocument, to after: ActivityDocument) {
        let seconds = after.uptimeSeconds - before.uptimeSeconds
        guard before.instance == after.instance, seconds > 0 else { return nil }
        self.seconds = seconds
        residentBytes = after.residentBytes
        snapshots = after.snapshots
        let former = Dictionary(
            before.devices.map { ($0.name, $0) }, uniquingKeysWith: { first, _ in first })
        devices = after.devices.map { device in
            // One that was attached meanwhile has done nothing before.
            let old = former[device.name]
            return Device(
                name: device.name, connections: device.connections,
                reads: Rate(from: old?.reads, to: device.reads, seconds),
                writes: Rate(from: old?.writes, to: device.writes, seconds),
                parkedWritesPerSecond: Self.rate(old?.parkedWrites, device.parkedWrites, seconds),
                copiedBytesPerSecond: Self.rate(old?.copiedBytes, device.copiedBytes, seconds))
        }
    }

    /// A counter that fell was reset.
    fileprivate static func rate(_ before: UInt64?, _ after: UInt64, _ seconds: Double) -> Double {
        Double(after >= before ?? 0 ? after - (before ?? 0) : after) / seconds
    }
}

extension TopFigures.Rate {
    fileprivate init(
        from before: ActivityDocument.Operation?, to after: ActivityDocument.Operation,
        _ seconds: Double
    ) {
        let isSame = after.count >= before?.count ?? 0
        let former = isSame ? before : nil
        let count = after.count - (former?.count ?? 0)
        self.init(
            perSecond: TopFigures.rate(former?.count, after.count, seconds),
            bytesPerSecond: TopFigures.rate(former?.bytes, after.bytes, seconds),
            latencySeconds: count > 0
                ? (after.seconds - (former?.seconds ?? 0)) / Double(count) : nil)
    }
}

extension TopFigures {
    /// The lines, those of the busiest devices first; nil: as wide and as many as needed.
    func text(columns: Int?, rows: Int?) -> String {
        var table = Table(
            [
                ("DEVICE", .left), ("READ", .right), ("R/S", .right), ("R LAT", .right),
                ("WRITE", .right), ("W/S", .right), ("W LAT", .right), ("PARKED/S", .right),
                ("COPIED", .right), ("USERS", .right),
            ], elastic: 0)
        let busy = devices.sorted { ($0.load, $1.name) > ($1.load, $0.name) }
        // Title, headings, and what follows of the snapshots.
        let room = rows.map { max(1, $0 - 5 - min(snapshots.count, 6)) } ?? .max
        for device in busy.prefix(room) {
            table.add([
                device.name, Self.bytes(device.reads), Self.count(device.reads.perSecond),
                Self.latency(device.reads), Self.bytes(device.writes),
                Self.count(device.writes.perSecond), Self.latency(device.writes),
                Self.count(device.parkedWritesPerSecond),
                Self.perSecond(device.copiedBytesPerSecond), "\(device.connections)",
            ])
        }
        let total = devices.reduce((0.0, 0.0)) {
            ($0.0 + $1.reads.bytesPerSecond, $0.1 + $1.writes.bytesPerSecond)
        }
        var text =
            "\(devices.count) device(s), reading \(Self.perSecond(total.0)), writing "
            + "\(Self.perSecond(total.1)); memory \(sizeText(residentBytes))\n"
        if !devices.isEmpty { text += table.lines(columns: columns) }
        if busy.count > room { text += "and \(busy.count - room) more\n" }
        if !snapshots.isEmpty {
            text += "\n" + snapshotLines(rows == nil ? .max : 6, columns: columns)
        }
        return text
    }

    private func snapshotLines(_ room: Int, columns: Int?) -> String {
        var table = Table(
            [
                ("SNAPSHOT", .left), ("STATE", .left), ("STORED", .right), ("LIMIT", .right),
                ("FILL", .right), ("FULL IN", .right),
            ], elastic: 0)
        // What is full first comes first.
        let urgent = snapshots.sorted {
            ($0.estimatedSecondsToFull ?? .infinity) < ($1.estimatedSecondsToFull ?? .infinity)
        }
        for snapshot in urgent.prefix(room) {
            let fill = snapshot.limit == 0 ? 0 : snapshot.storedBytes * 100 / snapshot.limit
            table.add([
                snapshot.name ?? snapshot.id, snapshot.state, sizeText(snapshot.storedBytes),
                sizeText(snapshot.limit), "\(fill) %",
                snapshot.estimatedSecondsToFull.map(Self.span) ?? "-",
            ])
        }
        return table.lines(columns: columns)
    }

    private static func bytes(_ rate: Rate) -> String { perSecond(rate.bytesPerSecond) }

    private static func perSecond(_ bytes: Double) -> String {
        bytes < 1 ? "-" : sizeText(UInt64(bytes)) + "/s"
    }

    private static func count(_ perSecond: Double) -> String {
        perSecond == 0 ? "-" : perSecond < 10 ? tenths(perSecond) : "\(Int(perSecond.rounded()))"
    }

    private static func latency(_ rate: Rate) -> String {
        guard let seconds = rate.latencySeconds else { return "-" }
        if seconds < 0.001 { return "\(Int((seconds * 1e6).rounded())) us" }
        return seconds < 1 ? tenths(seconds * 1e3) + " ms" : tenths(seconds) + " s"
    }

    private static func tenths(_ value: Double) -> String {
        let tenths = Int((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }

    private static func span(_ seconds: Double) -> String {
        guard seconds < 100 * 86400 else { return "> 100 d" }
        let whole = Int(seconds)
        if whole < 60 { return "\(whole) s" }
        if whole < 3600 { return "\(whole / 60) min" }
        return whole < 86400 ? "\(whole / 3600) h \(whole / 60 % 60) min" : "\(whole / 86400) d"
    }
}

extension TopFigures.Device {
    /// What devices are sorted by.
    fileprivate var load: Double { reads.bytesPerSecond + writes.bytesPerSecond }
}
