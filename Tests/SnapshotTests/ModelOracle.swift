// The oracle of the randomised test: from the rules of difference layers and storage alone it says
// which images a failing source costs.
//
// - A block is preserved once in the layer of the newest image, when it is overwritten first.
// - It goes to the sources of the newest snapshot, then to those of the older ones; a source that
//   failed gets nothing more, and what it failed to take goes to the next.
// - When none is left all images of the device are lost, unless a patient snapshot is among them.
// - What still waits in memory when a snapshot is taken or destroyed goes to the sources of what is
//   the newest then, so the test lets it be stored before, where a source can fail.
// - Zero blocks take no space. A destroyed layer is merged into the next older one.
// - A stored block that cannot be read costs the images cut at or before its layer.

import TestSupport

/// What the layer of an image knows of a block.
enum ModelPlace: UInt8 {
    /// Nothing: it was not overwritten while the image was the newest.
    case none
    /// It takes no space, or lies where nothing fails.
    case good
    /// It lies in the source that is made to fail.
    case faulty
}

/// How preserving ends.
enum ModelOutcome {
    case kept
    /// Nothing is lost as long as storage is added before another snapshot goes.
    case needsRoom
    /// All images of the device are lost.
    case lost
}

extension ModelDevice {
    /// The newest image that is not lost.
    var newestLive: Int? { images.lastIndex { !$0.isLost } }

    /// The blocks of `range` are overwritten while `newest` is the newest image.
    mutating func preserve(
        _ range: Range<Int>, in newest: Int, isFailing: Bool
    ) -> ModelOutcome {
        var outcome = ModelOutcome.kept
        for block in range.lowerBound / 4096..<(range.upperBound + 4095) / 4096
        where images[newest].places[block] == .none {
            let bytes = block * 4096..<min((block + 1) * 4096, contents.count)
            if images[newest].contents.isZero(in: bytes) {
                images[newest].places[block] = .good
            } else if let place = placeForBlock(isFailing) {
                images[newest].places[block] = place
            } else if images.contains(where: { !$0.isLost && $0.snapshot.isThrottled }) {
                // It waits in memory for the storage that is added at once.
                images[newest].places[block] = .good
                outcome = .needsRoom
            } else {
                return .lost
            }
        }
        return outcome
    }

    private mutating func placeForBlock(_ isFailing: Bool) -> ModelPlace? {
        for image in images.reversed() where !image.isLost {
            for isFaulty in image.snapshot.sources {
                if !isFaulty { return .good }
                if sawFailure { continue }
                guard isFailing else { return .faulty }
                sawFailure = true
            }
        }
        return nil
    }

    /// The images cut at or before the one at `index` are lost.
    mutating func lose(upTo index: Int) {
        for older in 0...index { images[older].isLost = true }
    }

    /// The snapshot is destroyed: what its layer has goes to the next older one.
    mutating func destroyed(_ snapshot: ModelSnapshot) {
        guard let index = images.firstIndex(where: { $0.snapshot === snapshot }) else { return }
        if !images[index].isLost, index > 0, !images[index - 1].isLost {
            for block in images[index].places.indices
            where images[index - 1].places[block] == .none {
                images[index - 1].places[block] = images[index].places[block]
            }
        }
        images.remove(at: index)
    }

    /// The image whose layer a read of `range` of image `index` finds in the faulty source; nil
    /// when it needs nothing from there.
    func faultyLayer(under range: Range<Int>, of index: Int) -> Int? {
        for block in range.lowerBound / 4096..<(range.upperBound + 4095) / 4096 {
            let layer = images.indices.first { $0 >= index && images[$0].places[block] != .none }
            if let layer, images[layer].places[block] == .faulty { return layer }
        }
        return nil
    }

    /// Some block lies in the faulty source.
    var usesFaulty: Bool { images.contains { !$0.isLost && $0.places.contains(.faulty) } }
}
