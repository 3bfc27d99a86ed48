// The reference of the randomised test: what devices and images must hold, as plain arrays.

import TestSupport

/// A snapshot that is held, over one or several devices.
final class ModelSnapshot {
    let name: String
    /// Its policy is `throttle`: while it is held nothing of its devices is given up for want of
    /// room.
    let isThrottled: Bool
    /// Its storage in order; true is the source that is made to fail.
    var sources: [Bool]

    init(name: String, isThrottled: Bool, sources: [Bool]) {
        self.name = name
        self.isThrottled = isThrottled
        self.sources = sources
    }

    var usesFaulty: Bool { sources.contains(true) }
}

/// One image of a device: what it must hold, and what its overlay must show.
struct ModelImage {
    let snapshot: ModelSnapshot
    var contents: [UInt8]
    var overlay: [UInt8]
    let readers: [NBDClient]
    let writers: [NBDClient]
    /// Of each block of the device: what the layer of this snapshot knows of it.
    var places: [ModelPlace]
    /// It lost data: every read fails.
    var isLost = false
}

/// A device and the images of it that are held, the oldest first.
struct ModelDevice {
    let name: String
    /// Sizes and offsets of requests are multiples of it.
    let unit: Int
    var contents: [UInt8]
    var images: [ModelImage] = []
    let clients: [NBDClient]
    /// Its engine saw the faulty source fail: nothing more goes there.
    var sawFailure = false
    /// Requests that change the overlay of a snapshot on the faulty source would fail.
    var isFaultyUnsafe = false

    var blockCount: Int { (contents.count + 4095) / 4096 }
}

/// Where a request goes.
enum ModelTarget: Hashable {
    case origin
    case image(Int)
    case overlay(Int)

    var image: Int? {
        switch self {
        case .origin: nil
        case .image(let index), .overlay(let index): index
        }
    }
}

/// A request in flight and what its reply must be.
struct ModelRequest {
    let client: NBDClient
    let request: NBDRequest
    /// Of a read: what must come.
    let expected: [UInt8]?
    let target: ModelTarget
    var range: Range<Int> { Int(request.offset)..<Int(request.offset + request.length) }
    /// It makes the blocks it touches be preserved.
    var overwrites: Bool {
        target == .origin && (request.command == .write || request.command == .writeZeroes)
    }
}

extension ModelDevice {
    /// A random request that touches no byte a request of `batch` changes, and changes none that
    /// one of them reads; nil when the dice fall on such a one, or on an image that is lost or
    /// belongs to `spared`.
    func randomRequest(
        beside batch: [ModelRequest], sparing spared: ModelSnapshot? = nil,
        _ generator: inout SeededGenerator
    ) -> ModelRequest? {
        let image = images.indices.randomElement(using: &generator)
        let target: ModelTarget
        switch (Int.random(in: 0..<10, using: &generator), image) {
        case (0..<5, _), (_, nil): target = .origin
        case (5..<8, let image?): target = .image(image)
        case (_, let image?): target = .overlay(image)
        }
        if let image = target.image, images[image].isLost || images[image].snapshot === spared {
            return nil
        }
        let range = randomRange(&generator)
        let command = Self.randomCommand(target, &generator)
        if command != .read, isFaultyUnsafe, let image = target.image,
            images[image].snapshot.usesFaulty
        {
            return nil
        }
        let client = clients(of: target).randomElement(using: &generator)!
        let collides = batch.contains {
            $0.target == target && $0.range.overlaps(range)
                && !($0.request.command == .read && command == .read)
        }
        guard !collides, batch.count(where: { $0.client === client }) < 4 else { return nil }
        let flags = Bool.random(using: &generator) ? NBD.CommandFlag.noHole : 0
        return ModelRequest(
            client: client,
            request: NBDRequest(
                command, flags: command == .writeZeroes ? flags : 0, cookie: client.freshCookie(),
                offset: UInt64(range.lowerBound), length: UInt64(range.count),
                payload: command == .write ? generator.bytes(range.count) : []),
            expected: command == .read ? held(by: target).part(range) : nil, target: target)
    }

    private func clients(of target: ModelTarget) -> [NBDClient] {
        switch target {
        case .origin: clients
        case .image(let index): images[index].readers
        case .overlay(let index): images[index].writers
        }
    }

    private func held(by target: ModelTarget) -> [UInt8] {
        switch target {
        case .origin: contents
        case .image(let index): images[index].contents
        case .overlay(let index): images[index].overlay
        }
    }

    /// Mostly some sectors anywhere, sometimes whole blocks or chunks.
    func randomRange(_ generator: inout SeededGenerator) -> Range<Int> {
        let grain = [unit, unit, unit, 4096, 65536].randomElement(using: &generator)!
        let count = contents.count / unit
        let longest = [1, 16, 140].randomElement(using: &generator)!
        var first = Int.random(in: 0..<count, using: &generator) * unit
        var last = first + Int.random(in: 1...longest, using: &generator) * unit
        if grain > unit {
            first = first / grain * grain
            last = (last + grain - 1) / grain * grain
        }
        last = min(last, contents.count, first + 192 << 10)
        return first..<last
    }

    private static func randomCommand(
        _ target: ModelTarget, _ generator: inout SeededGenerator
    ) -> NBD.Command {
        switch (target, Int.random(in: 0..<10, using: &generator)) {
        case (.image, _): .read
        case (_, 0..<3): .read
        case (_, 3..<8): .write
        case (.origin, 8): .trim
        default: .writeZeroes
        }
    }

    /// The request has been answered: what must be there from now on.
    mutating func done(_ request: ModelRequest) {
        switch (request.request.command, request.target) {
        case (.write, .origin):
            contents.overwrite(at: request.range.lowerBound, with: request.request.payload)
        case (.write, .overlay(let index)):
            images[index].overlay.overwrite(
                at: request.range.lowerBound, with: request.request.payload)
        case (.writeZeroes, .origin): contents.zero(in: request.range)
        case (.writeZeroes, .overlay(let index)): images[index].overlay.zero(in: request.range)
        default: break
        }
    }

    /// What was discarded reads as before or as zeroes, and stays so.
    mutating func discarded(_ range: Range<Int>, nowReads bytes: [UInt8]) -> Bool {
        let isRight = isMixture(of: contents, at: range, bytes)
        contents.overwrite(at: range.lowerBound, with: bytes)
        return isRight
    }

    /// Every byte is that of `before` or zero.
    func isMixture(of before: [UInt8], at range: Range<Int>, _ bytes: [UInt8]) -> Bool {
        before.firstDifference(from: bytes, at: range.lowerBound) == nil
            || zip(bytes, before[range]).allSatisfy { $0 == $1 || $0 == 0 }
    }
}
