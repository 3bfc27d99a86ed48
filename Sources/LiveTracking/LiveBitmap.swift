internal import Host
internal import BlockModel
internal import CLiveTracking
internal import ChangeTracking
internal import Glibc

// The marks of one disk: memory that is shared with the kernel's programs.
//
//   | header page: shape, counters of doubt, token | one bit for each 2^shift sectors ... |
//
// Invariants
// - A word is taken by: load, fold what was loaded into the change map, clear what was loaded. A
//   mark that comes between is in neither or stays; a process killed between folds twice.
// - The shape does not change. The programs read it from the slot of the bitmap.

/// Marks of a disk. Safe on any thread: words are changed by atomic operations alone.
final class LiveBitmap: @unchecked Sendable {
    // SAFETY: what the compiler cannot see is the kernel, and that every access is atomic.
    private static let magic: UInt64 = 0x534C_4956_4501_0001

    let descriptor: Int32
    let sequence: UInt64
    let sectorCount: UInt64
    /// Sectors for each bit, as a power of two.
    let shift: UInt64
    private let words: UnsafeMutablePointer<UInt64>
    private let wordCount: Int

    /// Bytes that a bit stands for.
    var granularity: UInt64 { 512 << shift }
    var bitCount: UInt64 { (sectorCount + (1 << shift) - 1) >> shift }
    /// Bytes of memory.
    var byteCount: UInt64 { UInt64(wordCount) * 8 }

    deinit {
        munmap(words, wordCount * 8)
        close(descriptor)
    }

    private init(
        descriptor: Int32, sequence: UInt64, sectorCount: UInt64, shift: UInt64,
        words: UnsafeMutablePointer<UInt64>, wordCount: Int
    ) {
        self.descriptor = descriptor
        self.sequence = sequence
        self.sectorCount = sectorCount
        self.shift = shift
        self.words = words
        self.wordCount = wordCount
    }

    /// Beyond 8 TiB a bit stands for 64 KiB.
    static func shift(sectorCount: UInt64) -> UInt64 { sectorCount > 8 << 31 ? 7 : 3 }

    private static func wordCount(sectorCount: UInt64, shift: UInt64) -> UInt64 {
        let bits = (sectorCount + (1 << shift) - 1) >> shift
        let words = UInt64(CLT_HEADER_WORDS) + (bits + 63) / 64
        return (words + 511) / 512 * 512
    }

    /// Makes an empty bitmap.
    static func make(
        sequence: UInt64, sectorCount: UInt64, isMapped: Bool, token: UniqueID
    ) -> Result<LiveBitmap, LiveError> {
        let shift = shift(sectorCount: sectorCount)
        let count = wordCount(sectorCount: sectorCount, shift: shift)
        let descriptor = clt_bitmap_create(UInt32(clamping: count))
        guard descriptor >= 0 else {
            return .failure(
                LiveError(
                    .failed,
                    "\(count * 8) bytes for the marks of a disk cannot be had "
                        + "(\(SystemFile.errorText(-descriptor))); memory of BPF maps counts for the "
                        + "service's limits of memory"))
        }
        guard let words = map(descriptor, Int(count)) else {
            let reason = errno
            close(descriptor)
            return .failure(
                LiveError(
                    .failed,
                    "the marks of a disk cannot be mapped (\(SystemFile.errorText(reason)))"
                ))
        }
        let bitmap = LiveBitmap(
            descriptor: descriptor, sequence: sequence, sectorCount: sectorCount, shift: shift,
            words: words, wordCount: Int(count))
        bitmap.store(CLT_WORD_DISK, sequence)
        bitmap.store(
            CLT_WORD_SHAPE,
            sectorCount << UInt64(CLT_SHAPE_SECTORS_SHIFT) | setAlways
                | (isMapped ? UInt64(CLT_SHAPE_MAPPED) : 0) | shift)
        bitmap.token = token
        bitmap.store(CLT_WORD_MAGIC, magic)
        return .success(bitmap)
    }

    /// Takes over a bitmap that was pinned; nil when it is not one of ours.
    static func adopt(_ descriptor: Int32) -> LiveBitmap? {
        var count: UInt32 = 0
        guard clt_bitmap_word_count(descriptor, &count) == 0, count >= 1024,
            let words = map(descriptor, Int(count))
        else {
            close(descriptor)
            return nil
        }
        func word(_ index: Int) -> UInt64 { clt_load_word(words + index) }
        let shape = word(CLT_WORD_SHAPE)
        let sectors = shape >> UInt64(CLT_SHAPE_SECTORS_SHIFT)
        let shift = shape & UInt64(CLT_SHAPE_SHIFT_MASK)
        guard word(CLT_WORD_MAGIC) == magic, (3...20).contains(shift), sectors > 0,
            wordCount(sectorCount: sectors, shift: shift) == UInt64(count)
        else {
            munmap(words, Int(count) * 8)
            close(descriptor)
            return nil
        }
        return LiveBitmap(
            descriptor: descriptor, sequence: word(CLT_WORD_DISK), sectorCount: sectors,
            shift: shift, words: words, wordCount: Int(count))
    }

    private static func map(_ descriptor: Int32, _ count: Int) -> UnsafeMutablePointer<UInt64>? {
        let memory = mmap(nil, count * 8, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let memory, memory != MAP_FAILED else { return nil }
        // SAFETY: the mapping has `count` words.
        return memory.bindMemory(to: UInt64.self, capacity: count)
    }

    /// Bits are set without a look at them where loads may be satisfied early.
    private static var setAlways: UInt64 {
        #if arch(x86_64)
            0
        #else
            UInt64(CLT_SHAPE_ALWAYS)
        #endif
    }

    // MARK: Header

    private func store(_ index: Int, _ value: UInt64) { clt_store_word(words + index, value) }
    private func load(_ index: Int) -> UInt64 { clt_load_word(words + index) }

    /// Names this unbroken set of marks.
    var token: UniqueID {
        get {
            UniqueID(
                high: load(CLT_WORD_TOKEN_HIGH),
                low: load(CLT_WORD_TOKEN_LOW))
        }
        set {
            store(CLT_WORD_TOKEN_HIGH, newValue.high)
            store(CLT_WORD_TOKEN_LOW, newValue.low)
        }
    }

    /// What the programs need to know: size, granularity and kind.
    var shape: UInt64 { load(CLT_WORD_SHAPE) }
    var isMapped: Bool { shape & UInt64(CLT_SHAPE_MAPPED) != 0 }

    /// The first counter that is not zero.
    var doubt: LiveDoubt? {
        let counters: [(Int, (UInt64) -> LiveDoubt)] = [
            (CLT_WORD_PASSTHROUGH, LiveDoubt.passthrough),
            (CLT_WORD_BEYOND, LiveDoubt.beyondEnd),
            (CLT_WORD_CHAIN, LiveDoubt.discardChain),
            (CLT_WORD_FULL, LiveDoubt.flightsFull),
            (CLT_WORD_TWICE, LiveDoubt.flightTwice),
        ]
        for (word, doubt) in counters {
            let count = load(word)
            if count != 0 { return doubt(count) }
        }
        return nil
    }

    /// Begins a new set of marks: what a generation named that continued with the former is void
    /// from here on, whatever happens next.
    func renew() {
        token = .random()
        for word in CLT_WORD_BEYOND...CLT_WORD_TWICE { store(word, 0) }
    }

    // MARK: Marks

    private var headerWordCount: Int { CLT_HEADER_WORDS }

    /// Finds marks in the words that hold the bits `bits`, from the word of `position` on. Returns
    /// the bit at which the search continues; `bits.upperBound` when nothing is left.
    func collect(
        from position: UInt64, in bits: Range<UInt64>, countMax: Int,
        into found: inout [(word: Int, bits: UInt64)]
    ) -> UInt64 {
        guard position < bits.upperBound else { return bits.upperBound }
        let end = headerWordCount + Int((bits.upperBound - 1) / 64) + 1
        var index = headerWordCount + Int(position / 64)
        while found.count < countMax {
            index = clt_next_marked(words, index, end)
            guard index < end else { return bits.upperBound }
            let word = UInt64(index - headerWordCount)
            var mask = UInt64.max
            if word == bits.lowerBound / 64 { mask &= ~0 << (bits.lowerBound % 64) }
            if word == (bits.upperBound - 1) / 64 {
                mask &= ~0 >> (63 - (bits.upperBound - 1) % 64)
            }
            let value = clt_load_word(words + index) & mask
            if value != 0 { found.append((index - headerWordCount, value)) }
            index += 1
        }
        return min(UInt64(index - headerWordCount) * 64, bits.upperBound)
    }

    /// Clears marks that were folded.
    func clear(word: Int, bits: UInt64) {
        precondition(word >= 0 && word < wordCount - headerWordCount, "a word lies in its bitmap")
        clt_clear_bits(words + headerWordCount + word, bits)
    }

    /// Adds the marks of a bitmap that no program uses any more.
    func add(_ other: LiveBitmap) {
        let end = other.wordCount
        var index = clt_next_marked(other.words, headerWordCount, end)
        while index < end {
            let value = clt_load_word(other.words + index)
            if shift == other.shift {
                clt_set_bits(words + index, value)
            } else {
                addWidened(value, at: UInt64(index - headerWordCount), from: other.shift)
            }
            index = clt_next_marked(other.words, index + 1, end)
        }
    }

    private func addWidened(_ value: UInt64, at word: UInt64, from finer: UInt64) {
        for position in UInt64(0)..<64 where value >> position & 1 != 0 {
            let bit = ((word * 64 + position) << finer) >> shift
            clt_set_bits(words + headerWordCount + Int(bit / 64), 1 << (bit % 64))
        }
    }
}
