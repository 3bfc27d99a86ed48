import BlockModel
import CopyOnWrite

// The space of one source, over a simulated file or block device: a filesystem that others fill and
// empty, that refuses at a hidden quota, and that leaves half of a refused allocation
// behind; erasures that fail; threads that are not available. Checked after every step:
//
// - what was granted is reserved, belongs to one user, and holds nothing of another one;
// - the capacity is what the file really has, whatever failed half-way;
// - storage is full only at its limit, or when the filesystem gave less than it was asked for;
// - at the end everybody was answered.

/// A world of one source, made from one seed. `run` returns the violation found, or nil.
final class StorageWorld {
    private var random: SeededGenerator
    private var space: StorageSpace
    private let isFile: Bool
    private let extentByteCount: UInt64
    /// Extents that the file has reserved, or all of the block device.
    private var reserved: Set<UInt64> = []
    private var granted: Set<UInt64> = []
    /// Extents in which somebody's data can still be read.
    private var written: Set<UInt64> = []
    /// Bytes that the filesystem can give beyond its reserve, and those it gives in fact.
    private var usable: UInt64
    private var quota: UInt64
    private var waiting: [StoragePurpose] = []
    private var growth: GrowthRun?
    private var erasure: [ByteRange]?
    private var wasRefused = false
    private var violation: String?

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed ^ 0x5707_A6E5)
        isFile = random.oneIn(2)
        extentByteCount = ExtentSize.byteCount(
            for: UInt64(1 + random.below(200)) << 20, deviceCount: 1 + random.below(4))
        let extents = UInt64(1 + random.below(60))
        let limit = extents * extentByteCount + UInt64(random.below(Int(extentByteCount)))
        usable = UInt64(random.below(80)) * extentByteCount + UInt64(random.below(4096))
        quota = random.oneIn(3) ? UInt64(random.below(60)) * extentByteCount : .max / 2
        if isFile {
            space = StorageSpace(
                growingTo: limit, firstStep: UInt64(1 + random.below(8)) * extentByteCount,
                growthStepMax: UInt64(1 + random.below(20)) * extentByteCount,
                extentByteCount: extentByteCount)
        } else {
            space = StorageSpace(fixed: limit, extentByteCount: extentByteCount)
            for number in 0..<extents { reserved.insert(number * extentByteCount) }
        }
    }

    private func violate(_ text: String) {
        if violation == nil { violation = "storage: " + text }
    }

    func run(operations: Int) -> String? {
        for _ in 0..<operations where violation == nil { step() }
        for _ in 0..<100_000 where violation == nil {
            guard work(isHindered: false) else { break }
        }
        if violation == nil, !waiting.isEmpty {
            violate("\(waiting.count) requests for an extent were never answered")
        }
        return violation
    }

    private func step() {
        switch random.below(10) {
        case 0..<4: requestExtent(random.oneIn(4) ? .overlay : .preserving)
        case 4..<7:
            if let offset = granted.sorted().randomElement(using: &random) {
                granted.remove(offset)
                space.extentReleased(byteOffset: offset)
            }
        case 7:
            // Somebody else writes a file, or deletes one.
            let change = UInt64(random.below(10)) * extentByteCount
            usable = random.oneIn(2) ? usable + change : usable - min(change, usable)
        default: _ = work(isHindered: true)
        }
        check()
    }

    private func check() {
        if growth == nil, UInt64(reserved.count) * extentByteCount != space.capacity {
            violate("the file has \(reserved.count) extents, the capacity is \(space.capacity)")
        }
        if UInt64(granted.count) * extentByteCount != space.grantedByteCount {
            violate("\(granted.count) extents are granted, not \(space.grantedByteCount) bytes")
        }
        if space.capacity > space.limit { violate("the source grew beyond its limit") }
    }

    // MARK: Extents

    private func requestExtent(_ purpose: StoragePurpose) {
        switch space.extentWanted(for: purpose) {
        case .granted(let byteOffset): grant(byteOffset)
        case .coming: waiting.append(purpose)
        case .full:
            guard purpose == .preserving else { return }
            if space.capacity + extentByteCount <= space.limit, isFile {
                violate("storage is full below its limit without having tried")
            }
            if !isFile, granted.count + space.unclean.count < reserved.count {
                violate("storage is full with extents left")
            }
        }
    }

    private func grant(_ byteOffset: UInt64) {
        if !granted.insert(byteOffset).inserted { violate("an extent is granted twice") }
        if !reserved.contains(byteOffset) { violate("a granted extent is not reserved") }
        if !isFile, written.contains(byteOffset) {
            violate("an extent is granted that holds another one's data")
        }
        written.insert(byteOffset)
    }

    private func answerWaiting() {
        let requests = waiting
        waiting = []
        for purpose in requests {
            switch space.extentAwaited(for: purpose) {
            case .granted(let byteOffset): grant(byteOffset)
            case .coming: waiting.append(purpose)
            case .full:
                let isAtLimit = space.capacity + extentByteCount > space.limit
                if purpose == .preserving, !isAtLimit, !wasRefused {
                    violate("storage is full although the filesystem refused nothing")
                }
            }
        }
    }

    // MARK: Growth and erasure

    /// Does one thing that is due; false when nothing is. `isHindered`: starting a thread may fail.
    private func work(isHindered: Bool) -> Bool {
        if growth != nil {
            grow()
            return true
        }
        if erasure != nil {
            erase()
            return true
        }
        if let run = space.growthDue() {
            wasRefused = false
            if isHindered, random.oneIn(5) { space.growthPutOff(run) } else { growth = run }
            return true
        }
        if let offsets = space.erasureDue() {
            if isHindered, random.oneIn(5) {
                space.erasurePutOff(offsets)
            } else {
                erasure = ErasurePlan.pieces(of: offsets, extentByteCount: extentByteCount)
            }
            return true
        }
        return false
    }

    private func grow() {
        guard var run = growth else { return }
        let room: UInt64? = random.oneIn(5) ? nil : usable
        guard let piece = run.next(room: room) else {
            if run.isShort { wasRefused = true }
            growth = nil
            space.growthEnded(run)
            answerWaiting()
            return
        }
        if let room, piece.byteCount > room { violate("the reserve of the filesystem is used") }
        let wanted = stride(
            from: piece.byteOffset, to: piece.byteOffset + piece.byteCount,
            by: Int(extentByteCount))
        for offset in wanted {
            if reserved.contains(offset) { violate("an extent is reserved twice") }
            guard usable >= extentByteCount, quota >= extentByteCount else { break }
            usable -= extentByteCount
            quota -= extentByteCount
            reserved.insert(offset)
        }
        if wanted.allSatisfy({ reserved.contains($0) }) {
            run.succeeded(piece)
        } else {
            for offset in wanted where reserved.remove(offset) != nil { freed() }
            run.failed(piece)
        }
        growth = run
    }

    private func freed() {
        usable += extentByteCount
        quota += extentByteCount
    }

    private func erase() {
        guard let piece = erasure?.popLast() else {
            erasure = nil
            space.erasureEnded()
            answerWaiting()
            return
        }
        let isClean = !random.oneIn(20)
        for offset in stride(from: piece.offset, to: piece.end, by: Int(extentByteCount)) {
            if granted.contains(offset) { violate("a granted extent is erased") }
            guard isClean else { continue }
            written.remove(offset)
            guard isFile else { continue }
            reserved.remove(offset)
            freed()
        }
        space.erased(piece, isClean: isClean)
        answerWaiting()
    }
}
