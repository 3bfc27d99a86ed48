// The reference of the randomised test: what devices and images must hold, as plain arrays.

import TestSupport

/// One image of a device: what it must hold, and what its overlay must show.
struct ModelImage {
    let snapshot: String
    let contents: [UInt8]
    var overlay: [UInt8]
    let readers: [NBDClient]
    let writers: [NBDClient]
}

/// A device and the images of it that are held.
struct ModelDevice {
    let name: String
    /// Sizes and offsets of requests are multiples of it.
    let unit: Int
    var contents: [UInt8]
    var images: [ModelImage] = []
    let clients: [NBDClient]
}

/// Where a request goes.
enum ModelTarget: Hashable {
    case origin
    case image(Int)
    case overlay(Int)
}

/// A request in flight and what its reply must be.
struct ModelRequest {
    let client: NBDClient
    let request: NBDRequest
    /// Of a read: what must come.
    let expected: [UInt8]?
    let target: ModelTarget
    var range: Range<Int> { Int(request.offset)..<Int(request.offset + request.length) }
}

extension ModelDevice {
    /// A random request that touches no byte a request of `batch` changes, and changes none that
    /// one of them reads; nil when the dice fall on such a one.
    func randomRequest(
        beside batch: [ModelRequest], _ generator: inout SeededGenerator
    ) -> ModelRequest? {
        let image = images.indices.randomElement(using: &generator)
        let target: ModelTarget
        switch (Int.random(in: 0..<10, using: &generator), image) {
        case (0..<5, _), (_, nil): target = .origin
        case (5..<8, let image?): target = .image(image)
        case (_, let image?): target = .overlay(image)
        }
        let (clients, held): ([NBDClient], [UInt8]) =
            switch target {
            case .origin: (self.clients, contents)
            case .image(let index): (images[index].readers, images[index].contents)
            case .overlay(let index): (images[index].writers, images[index].overlay)
            }
        let range = randomRange(&generator)
        let command = Self.randomCommand(target, &generator)
        let collides = batch.contains {
            $0.target == target && $0.range.overlaps(range)
                && !($0.request.command == .read && command == .read)
        }
        let client = clients.randomElement(using: &generator)!
        guard !collides, batch.count(where: { $0.client === client }) < 3 else { return nil }
        let flags = Bool.random(using: &generator) ? NBD.CommandFlag.noHole : 0
        return ModelRequest(
            client: client,
            request: NBDRequest(
                command, flags: command == .writeZeroes ? flags : 0, cookie: client.freshCookie(),
                offset: UInt64(range.lowerBound), length: UInt64(range.count),
                payload: command == .write ? generator.bytes(range.count) : []),
            expected: command == .read ? Array(held[range]) : nil, target: target)
    }

    /// Mostly some sectors anywhere, sometimes whole blocks or chunks.
    private func randomRange(_ generator: inout SeededGenerator) -> Range<Int> {
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
        let zeroes = repeatElement(UInt8(0), count: request.range.count)
        switch (request.request.command, request.target) {
        case (.write, .origin):
            contents.replaceSubrange(request.range, with: request.request.payload)
        case (.write, .overlay(let index)):
            images[index].overlay.replaceSubrange(request.range, with: request.request.payload)
        case (.writeZeroes, .origin):
            contents.replaceSubrange(request.range, with: zeroes)
        case (.writeZeroes, .overlay(let index)):
            images[index].overlay.replaceSubrange(request.range, with: zeroes)
        default: break
        }
    }

    /// What was discarded reads as before or as zeroes, and stays so.
    mutating func discarded(_ range: Range<Int>, nowReads bytes: [UInt8]) -> Bool {
        let isRight = zip(bytes, contents[range]).allSatisfy { $0 == $1 || $0 == 0 }
        contents.replaceSubrange(range, with: bytes)
        return isRight
    }
}
