package import BlockModel
package import CopyOnWrite
internal import FoundationEssentials
package import FreezePlanning
internal import Glibc

// What a client asks for, checked: names, sizes, storage, overflow policy.

/// Storage for a snapshot, as asked for.
package struct StorageSelection: Equatable, Sendable {
    package let requests: [StorageRequest]
    /// Bytes each source that grows may reach; nil: what follows from the devices' sizes.
    package let limit: UInt64?
    /// Take block devices whatever is on them.
    package let isForced: Bool

    /// Least bytes of a source.
    package static let byteCountMin = StorageNeed.sourceLeast
    /// Most sources named at a time.
    package static let sourceCountMax = 64

    /// Checks what came from outside.
    package init(texts: [String], limit: UInt64?, isForced: Bool) throws(ControlError) {
        guard texts.count <= Self.sourceCountMax else {
            throw ControlError(
                .invalid, "\(texts.count) storage sources: give at most \(Self.sourceCountMax)")
        }
        if let limit, limit < Self.byteCountMin {
            throw ControlError(
                .invalid,
                "a limit of \(limit) bytes is too small to preserve anything; give at least "
                    + "\(Self.byteCountMin >> 10)K")
        }
        if let limit, limit > UInt64(Int64.max) {
            throw ControlError(.invalid, "a limit of \(limit) bytes is larger than any storage")
        }
        var requests: [StorageRequest] = []
        for text in texts { requests.append(try Self.request(text)) }
        self.requests = requests
        self.limit = limit
        self.isForced = isForced
    }

    private static func request(_ text: String) throws(ControlError) -> StorageRequest {
        guard text.hasPrefix("memory:") else {
            guard text.hasPrefix("/"), !text.utf8.contains(0), text.utf8.count < 4096 else {
                throw ControlError(
                    .invalid,
                    "storage \"\(text)\": give the absolute path of a directory, new file or block "
                        + "device, or memory:SIZE")
            }
            return .path(text)
        }
        guard let size = parseSize(String(text.dropFirst(7))) else {
            throw ControlError(
                .invalid, "storage \"\(text)\": give a size such as memory:256M or memory:1.5G")
        }
        guard size >= byteCountMin else {
            throw ControlError(
                .invalid,
                "storage \(text) is too small to preserve anything; give at least "
                    + "memory:\(byteCountMin >> 10)K")
        }
        let machine = UInt64(sysconf(Int32(_SC_PHYS_PAGES))) * UInt64(sysconf(Int32(_SC_PAGESIZE)))
        guard size <= machine else {
            throw ControlError(
                .invalid, "storage \(text): this machine has \(machine) bytes of memory")
        }
        return .memory(size)
    }
}

/// What happens around the cut of a snapshot.
package struct TakeOptions: Equatable, Sendable {
    package let freeze: FreezeSelection
    /// What cannot be frozen is reported and does not prevent the cut.
    package let isBestEffort: Bool
    package let hooks: HookOptions

    package init(
        freeze: FreezeSelection, isBestEffort: Bool, hooks: HookOptions
    ) {
        self.freeze = freeze
        self.isBestEffort = isBestEffort
        self.hooks = hooks
    }
}

/// How a snapshot is asked for.
package struct SnapshotRequest: Equatable, Sendable {
    package let devices: [ObjectName]
    package let name: ObjectName?
    package let storage: StorageSelection
    package let policy: OverflowPolicy
    package let take: TakeOptions
    /// Only make it; `take` makes the cut.
    package let preparesOnly: Bool

    /// Most devices of a snapshot.
    package static let deviceCountMax = 256
    /// Longest time writers wait with `throttle` unless it says otherwise.
    package static let throttleSeconds: UInt64 = 30

    /// Checks what came from outside.
    package init(_ document: SnapshotCreateDocument) throws(ControlError) {
        devices = try Self.devices(document.devices, of: "snapshot")
        name = try document.name.map { text throws(ControlError) in
            guard UniqueID(text) == nil else {
                throw ControlError(
                    .invalid, "\"\(text)\" could be the id of a snapshot; choose another name")
            }
            return try CheckpointRequest.baseName(text, of: "snapshot")
        }
        storage = try StorageSelection(
            texts: document.storage ?? [], limit: document.limit,
            isForced: document.force ?? false)
        policy = try document.onOverflow.map(Self.policy) ?? .standard
        take = TakeOptions(
            freeze: try Self.freeze(document.freeze ?? []),
            isBestEffort: document.freezeBestEffort ?? false,
            hooks: try document.hooks.map { document throws(ControlError) in
                try HookOptions(document)
            } ?? .none)
        preparesOnly = document.prepare ?? false
    }

    /// The devices of a cut.
    static func devices(
        _ texts: [String], of kind: String
    ) throws(ControlError) -> [ObjectName] {
        guard (1...deviceCountMax).contains(texts.count) else {
            throw ControlError(
                .invalid, "a \(kind) takes 1 to \(deviceCountMax) devices; name them")
        }
        var devices: [ObjectName] = []
        for text in texts {
            let device = try name(text, of: "device")
            guard !devices.contains(device) else {
                throw ControlError(.invalid, "device \(device) is given twice; name it once")
            }
            devices.append(device)
        }
        return devices
    }

    private static func freeze(_ texts: [String]) throws(ControlError) -> FreezeSelection {
        if texts.isEmpty { return .standard }
        if texts.contains("none") {
            guard texts.allSatisfy({ $0 == "none" }) else {
                throw ControlError(.invalid, "freeze none cannot be combined with anything else")
            }
            return FreezeSelection(isAutomatic: false)
        }
        let mountPoints = texts.filter { $0 != "auto" }
        for text in mountPoints {
            guard text.hasPrefix("/"), !text.utf8.contains(0), text.utf8.count < 4096 else {
                throw ControlError(
                    .invalid,
                    "freeze \"\(text)\": give auto, none or the absolute path of a mount point")
            }
        }
        guard mountPoints.count <= FreezePlan.targetCountMax else {
            throw ControlError(
                .invalid,
                "\(mountPoints.count) mount points to freeze: give at most "
                    + "\(FreezePlan.targetCountMax)")
        }
        return FreezeSelection(isAutomatic: texts.contains("auto"), mountPoints: mountPoints)
    }

    static func name(_ text: String, of kind: String) throws(ControlError) -> ObjectName {
        guard let name = ObjectName(text) else {
            throw ControlError(
                .invalid,
                "\"\(text)\" is not a valid name for a \(kind): use 1 to 64 letters, digits, '.', '_' or "
                    + "'-', the first a letter or digit")
        }
        return name
    }

    private static func policy(_ text: String) throws(ControlError) -> OverflowPolicy {
        if text == "break" { return .standard }
        var seconds: UInt64? = text == "throttle" ? throttleSeconds : nil
        if text.hasPrefix("throttle:") { seconds = UInt64(text.dropFirst(9)) }
        guard let seconds, (1...3600).contains(seconds) else {
            throw ControlError(
                .invalid,
                "\"\(text)\" is not an overflow policy: use break, throttle or throttle:SECONDS, 1 to "
                    + "3600")
        }
        return OverflowPolicy(kind: .throttle, limitNanoseconds: seconds * 1_000_000_000)
    }
}

extension OverflowPolicy {
    /// As it is written on the command line.
    package var text: String {
        switch kind {
        case .break: "break"
        case .throttle: "throttle:\(limitNanoseconds / 1_000_000_000)"
        }
    }
}
