package import FoundationEssentials

// The JSON documents of the control socket. The service writes them and the command line reads
// them; their keys are a contract with scripts (interface.md). Swift names become snake case.

/// How documents are written and read, one way for service and command line.
package enum DocumentCoding {
    /// Writes documents: keys in a fixed order, so that equal documents are equal bytes.
    package static func encoder(pretty: Bool = false) -> JSONEncoder {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.dateEncodingStrategy = .iso8601
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        if pretty { encoder.outputFormatting.insert(.prettyPrinted) }
        return encoder
    }

    /// Reads documents.
    package static func decoder() -> JSONDecoder {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        decoder.dateDecodingStrategy = .iso8601
        return decoder
    }
}

/// A device.
package struct DeviceDocument: Codable, Equatable, Sendable {
    package var name: String
    /// Absolute path of the origin, symbolic links resolved.
    package var path: String
    /// Bytes, as all sizes.
    package var size: UInt64
    package var sectorSize: UInt32
    package var blockSize: UInt64
    package var chunkSize: UInt64
    package var chunkCount: UInt64
    package var readOnly: Bool
    package var blockDevice: Bool
    package var rotational: Bool
    /// How requests reach the origin: `direct`, `buffered` or `inline`.
    package var access: String
    /// Number of the loop that serves it.
    package var loop: Int
    package var attachedAt: Date
    /// Users at this moment: NBD connections and block devices.
    package var connections: Int
    /// Ids of its snapshots, the oldest first.
    package var snapshots: [String]
    /// The operator said that nobody else writes to the origin.
    package var exclusive: Bool
    /// `served`, or `live`: its users keep using the origin, and its writes are tracked there.
    package var mode: String
    /// Bytes of the smallest change that is distinguished.
    package var granularity: UInt64
    /// `continued` or `new`: whether what changed before it was attached is known. Left out when
    /// the loop is too busy to answer, as what follows.
    package var history: String?
    /// Why, for people.
    package var historyReason: String?
    /// UUID of its unbroken tracking history.
    package var generation: String?
    /// In which its changes are marked now.
    package var epoch: UInt32?
    /// Null when the generation has no cut yet, too.
    @OrNull package var lastCut: Date?
    package var counters: CountersDocument?
    /// How the origin stands: `present`, `gone`, `replaced` or `deleted`.
    package var originState: OriginState?

    package init(
        name: String, path: String, size: UInt64, sectorSize: UInt32, blockSize: UInt64,
        chunkSize: UInt64, chunkCount: UInt64, readOnly: Bool, blockDevice: Bool, rotational: Bool,
        access: String, loop: Int, attachedAt: Date, connections: Int, snapshots: [String],
        exclusive: Bool, mode: String, granularity: UInt64, history: String? = nil,
        historyReason: String? = nil, generation: String? = nil, epoch: UInt32? = nil,
        lastCut: Date?, counters: CountersDocument? = nil, originState: OriginState? = nil
    ) {
        self.name = name
        self.path = path
        self.size = size
        self.sectorSize = sectorSize
        self.blockSize = blockSize
        self.chunkSize = chunkSize
        self.chunkCount = chunkCount
        self.readOnly = readOnly
        self.blockDevice = blockDevice
        self.rotational = rotational
        self.access = access
        self.loop = loop
        self.attachedAt = attachedAt
        self.connections = connections
        self.snapshots = snapshots
        self.exclusive = exclusive
        self.mode = mode
        self.granularity = granularity
        self.history = history
        self.historyReason = historyReason
        self.generation = generation
        self.epoch = epoch
        self.lastCut = lastCut
        self.counters = counters
        self.originState = originState
    }
}

/// What a device has done since it was attached.
package struct CountersDocument: Codable, Equatable, Sendable {
    package var reads: UInt64
    package var writes: UInt64
    package var readBytes: UInt64
    package var writtenBytes: UInt64
    package var flushes: UInt64
    package var discards: UInt64
    package var zeroes: UInt64
    package var failures: UInt64
    /// Blocks of 4 KiB marked as changed, counted with every request that marks them.
    package var markedBlocks: UInt64
    /// Blocks of old data read in order to preserve them.
    package var copiedBlocks: UInt64
    /// The same in bytes.
    package var copiedBytes: UInt64
    /// Writes that waited for a cut, a copy or memory.
    package var parkedWrites: UInt64

    package init(
        reads: UInt64, writes: UInt64, readBytes: UInt64, writtenBytes: UInt64, flushes: UInt64,
        discards: UInt64, zeroes: UInt64, failures: UInt64, markedBlocks: UInt64,
        copiedBlocks: UInt64, copiedBytes: UInt64, parkedWrites: UInt64
    ) {
        self.reads = reads
        self.writes = writes
        self.readBytes = readBytes
        self.writtenBytes = writtenBytes
        self.flushes = flushes
        self.discards = discards
        self.zeroes = zeroes
        self.failures = failures
        self.markedBlocks = markedBlocks
        self.copiedBlocks = copiedBlocks
        self.copiedBytes = copiedBytes
        self.parkedWrites = parkedWrites
    }
}

/// The service at a glance.
package struct StatusDocument: Codable, Equatable, Sendable {
    package var version: String
    package var processId: Int32
    package var startedAt: Date
    package var control: String
    package var stateDirectory: String
    package var runtimeDirectory: String
    package var nbd: [String]
    /// Where the page is served.
    package var http: [String]
    package var loops: [LoopDocument]
    package var memory: MemoryDocument
    package var devices: [DeviceDocument]
    package var snapshots: [SnapshotDocument]
    package var missing: [MissingDeviceDocument]
    package var blocks: [BlockDocument]
    /// What the service before left waiting for too long; nil when nothing was.
    package var letGo: LetGoDocument?
    /// Seconds for which block devices wait for the next service.
    package var restartLimit: UInt64

    package init(
        version: String, processId: Int32, startedAt: Date, control: String, stateDirectory: String,
        runtimeDirectory: String, nbd: [String], http: [String], loops: [LoopDocument],
        memory: MemoryDocument, devices: [DeviceDocument], snapshots: [SnapshotDocument],
        missing: [MissingDeviceDocument], blocks: [BlockDocument], letGo: LetGoDocument? = nil,
        restartLimit: UInt64
    ) {
        self.version = version
        self.processId = processId
        self.startedAt = startedAt
        self.control = control
        self.stateDirectory = stateDirectory
        self.runtimeDirectory = runtimeDirectory
        self.nbd = nbd
        self.http = http
        self.loops = loops
        self.memory = memory
        self.devices = devices
        self.snapshots = snapshots
        self.missing = missing
        self.blocks = blocks
        self.letGo = letGo
        self.restartLimit = restartLimit
    }
}

/// Block devices that no service answered in time, so that their I/O failed.
package struct LetGoDocument: Codable, Equatable, Sendable {
    /// When the service before ended.
    package var since: Date
    /// When they were let go.
    package var until: Date
    /// Names for people.
    package var devices: [String]

    package init(
        since: Date, until: Date, devices: [String]
    ) {
        self.since = since
        self.until = until
        self.devices = devices
    }
}

/// A loop of the service.
package struct LoopDocument: Codable, Equatable, Sendable {
    package var loop: Int
    /// Optional features of io_uring in use.
    package var features: [String]
    /// Its allocations never wait for I/O that it may have to serve itself.
    package var ioFlusher: Bool
    package var devices: Int

    package init(
        loop: Int, features: [String], ioFlusher: Bool, devices: Int
    ) {
        self.loop = loop
        self.features = features
        self.ioFlusher = ioFlusher
        self.devices = devices
    }
}

/// Memory of the service.
package struct MemoryDocument: Codable, Equatable, Sendable {
    package var residentBytes: UInt64

    package init(
        residentBytes: UInt64
    ) {
        self.residentBytes = residentBytes
    }
}

/// A device that is remembered and could not be attached at the start.
package struct MissingDeviceDocument: Codable, Equatable, Sendable {
    package var name: String
    package var path: String
    package var reason: String

    package init(
        name: String, path: String, reason: String
    ) {
        self.name = name
        self.path = path
        self.reason = reason
    }
}

/// What `POST /v1/devices` takes.
package struct AttachDocument: Codable, Equatable, Sendable {
    package var name: String
    package var path: String
    package var readOnly: Bool?
    package var sectorSize: UInt32?
    /// Nobody else writes to the origin.
    package var exclusive: Bool?
    /// Its users keep using the origin; its writes are tracked there.
    package var live: Bool?

    /// Keys it may have, for refusing others.
    package static let keys: Set<String> = [
        "name", "path", "read_only", "sector_size", "exclusive", "live",
    ]

    package init(
        name: String, path: String, readOnly: Bool?, sectorSize: UInt32?, exclusive: Bool?,
        live: Bool? = nil
    ) {
        self.name = name
        self.path = path
        self.readOnly = readOnly
        self.sectorSize = sectorSize
        self.exclusive = exclusive
        self.live = live
    }
}

/// An answer that says why not.
package struct ErrorDocument: Codable, Equatable, Sendable {
    package var error: Body

    /// What is wrong.
    package struct Body: Codable, Equatable, Sendable {
        package var code: String
        package var message: String
        package var details: [String: String]

        package init(
            code: String, message: String, details: [String: String]
        ) {
            self.code = code
            self.message = message
            self.details = details
        }
    }

    package init(_ error: ControlError) {
        self.error = Body(code: error.name, message: error.message, details: error.details)
    }

    /// An error that is not the service's.
    package init(code: String, message: String) {
        error = Body(code: code, message: message, details: [:])
    }

    /// The error it carries.
    package var controlError: ControlError {
        if let reason = ControlError.Reason(rawValue: error.code) {
            return ControlError(reason, error.message, details: error.details)
        }
        return ControlError(
            ControlError.Code(name: error.code), error.message, details: error.details)
    }
}
