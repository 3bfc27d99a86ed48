package import BlockModel
package import ChangeTracking
internal import Synchronization

// A live device: the part of a disk's marks that are its own.
//
// Invariants
// - A taker of marks folds what `collect` found before it calls `clear` with it.
// - A bit that stands for sectors of a neighbour too (a partition that does not begin at a multiple
//   of the granularity) is reported to both and never cleared.

/// Marks that were found and are not yet cleared.
package struct LiveMarks: Sendable {
    /// Ranges of bytes of the device, ascending, not touching.
    package fileprivate(set) var ranges: [ByteRange] = []
    /// Everything before is found; the end of the question when nothing is left.
    package fileprivate(set) var resumeOffset: UInt64 = 0
    fileprivate var words: [(word: Int, bits: UInt64)] = []
    fileprivate var bitmap: LiveBitmap?

    /// Clears them: they are folded.
    package func clear() {
        guard let bitmap else { return }
        for (word, bits) in words where bits != 0 { bitmap.clear(word: word, bits: bits) }
    }
}

/// A live device's share of the marks of its disk.
package final class LiveWindow: Sendable {
    package let place: LivePlace
    let disk: LiveDisk
    private let tracker: LiveTracker
    private let known: Mutex<UniqueID>

    init(_ place: LivePlace, of disk: LiveDisk, tracker: LiveTracker) {
        self.place = place
        self.disk = disk
        self.tracker = tracker
        known = Mutex(disk.bitmap.token)
    }

    /// Names the set of marks that a generation continues with.
    package var token: UniqueID { known.withLock { $0 } }
    /// What was found of the marks at the attach.
    package var finding: LiveFinding { disk.finding }
    /// Bytes that a mark stands for.
    package var granularity: UInt64 { disk.bitmap.granularity }
    /// Bytes of memory that the disk's marks take.
    package var byteCount: UInt64 { disk.bitmap.byteCount }

    /// Words of marks found at a time.
    private static let wordCountMax = 1024

    /// Finds marks of the bytes `range` of the device, from `position` on.
    package func collect(from position: UInt64, in range: ByteRange) -> LiveMarks {
        let bitmap = disk.bitmap
        var marks = LiveMarks()
        marks.resumeOffset = range.end
        guard range.length > 0, position < range.end else { return marks }
        let shift = bitmap.shift
        func bit(ofByte offset: UInt64) -> UInt64 { (place.startSector + offset / 512) >> shift }
        let bits = bit(ofByte: range.offset)..<min(bit(ofByte: range.end - 1) + 1, bitmap.bitCount)
        guard !bits.isEmpty else { return marks }
        var words: [(word: Int, bits: UInt64)] = []
        let next = bitmap.collect(
            from: max(bit(ofByte: position), bits.lowerBound), in: bits,
            countMax: Self.wordCountMax, into: &words)
        for index in words.indices {
            append(
                words[index].bits, of: UInt64(words[index].word), shift, range, to: &marks.ranges)
            words[index].bits &= ~sharedBits(in: UInt64(words[index].word), shift)
        }
        marks.words = words
        marks.bitmap = bitmap
        if next < bits.upperBound {
            marks.resumeOffset = min(((next << shift) - place.startSector) * 512, range.end)
        }
        return marks
    }

    private func append(
        _ bits: UInt64, of word: UInt64, _ shift: UInt64, _ range: ByteRange,
        to ranges: inout [ByteRange]
    ) {
        var left = bits
        while left != 0 {
            let first = UInt64(left.trailingZeroBitCount)
            let run = UInt64((~(left >> first)).trailingZeroBitCount)
            let end = first + run
            left = end == 64 ? 0 : left & (UInt64.max << end)
            let from = max((word * 64 + first) << shift, place.startSector) - place.startSector
            let to = max((word * 64 + end) << shift, place.startSector) - place.startSector
            let start = max(from * 512, range.offset)
            let stop = min(to * 512, range.end)
            guard start < stop else { continue }
            if let last = ranges.last, last.end == start {
                ranges[ranges.count - 1] = ByteRange(
                    offset: last.offset, length: stop - last.offset)
            } else {
                ranges.append(ByteRange(offset: start, length: stop - start))
            }
        }
    }

    /// The bytes of the device, `size` of them, in blocks whose marks are its own alone.
    package func ownRange(size: UInt64) -> ByteRange {
        guard place.isPartition else { return ByteRange(offset: 0, length: size) }
        let unit = granularity
        let (start, end) = (place.startSector * 512, place.startSector * 512 + size)
        let first =
            ((start + unit - 1) / unit * unit - start + blockByteCount - 1)
            / blockByteCount * blockByteCount
        let last =
            end % unit == 0
            ? size
            : (max(end / unit * unit, start) - start)
                / blockByteCount * blockByteCount
        return ByteRange(offset: min(first, size), length: last > first ? last - first : 0)
    }

    /// Bits of a word that stand for a neighbour's sectors too.
    private func sharedBits(in word: UInt64, _ shift: UInt64) -> UInt64 {
        guard place.isPartition else { return 0 }
        var shared: UInt64 = 0
        for sector in [place.startSector, place.startSector + place.sectorCount]
        where sector & ((1 << shift) - 1) != 0 && (sector >> shift) / 64 == word {
            shared |= 1 << ((sector >> shift) % 64)
        }
        return shared
    }

    /// Looks whether marks may have been missed since the last look: then they are a new set, and
    /// why is returned.
    package func examine() -> LiveDoubt? {
        tracker.examine(disk)
        let token = disk.bitmap.token
        return known.withLock { known in
            guard known != token else { return nil }
            known = token
            return disk.lastDoubt ?? .detached
        }
    }

    /// Takes over the size that the disk has now; why it cannot, else nil.
    @discardableResult
    package func grow(to sectorCount: UInt64) -> LiveError? {
        tracker.grow(disk, to: sectorCount)
    }

    /// Whether tracking began with the attach, and nothing was written to the device before, since the
    /// kernel found its disk. Blocks for 3 s at most.
    package func beganUntouched() -> Bool { finding == .absent && place.isUntouched() }

    /// Whether no mark is left that was not taken, no write is in flight, and no mark was missed. False
    /// also where marks are shared with a neighbour, which are never cleared. Blocks for 3 s at most.
    package func isAtRest(size: UInt64) -> Bool {
        let all = ByteRange(offset: 0, length: size)
        guard ownRange(size: size) == all, place.awaitWritesInFlight(), examine() == nil else {
            return false
        }
        var position: UInt64 = 0
        while position < size {
            let found = collect(from: position, in: all)
            guard found.ranges.isEmpty else { return false }
            position = found.resumeOffset
        }
        return true
    }

    /// Ends the tracking of the device.
    package func end() { tracker.untrack(self) }

    /// The device as it is now.
    package var currentPlace: LivePlace? { LivePlace(of: place.number) }
}
