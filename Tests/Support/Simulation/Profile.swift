import CopyOnWrite

/// What one seed's world is like: drawn from the seed.
struct Profile {
    var deviceCount: Int
    var snapshotsMax: Int
    /// A fault once in so many completions; 0 never.
    var originWriteFault = 0
    var copyReadFault = 0
    var imageReadFault = 0
    var storageWriteFault = 0
    var storageReadFault = 0
    var bitRot = 0
    var shortTransfer = 0
    var mapFault = 0
    /// Extents of a source.
    var extentsPerSource: Int
    var isStorageSlow = false
    var policy: OverflowPolicy
    /// No writer waits long enough to cost a snapshot its data.
    var waitsLong: Bool
    var overlayWrites: Bool
    var layerByteCountMax: UInt64 = 1 << 20
    var crashes: Bool
    var copyCount: Int
    /// Origins tell where their holes are, to zeroings and discards of so many bytes.
    var reportsHoles: Bool
    var scannedByteCountMin: UInt64
    /// Origins are resized at cuts.
    var resizes = false
    /// Pools refuse: room that is there, and questions for holes.
    var refusals = false
    /// At times all storage of a device fails at once.
    var outages = false

    init(_ random: inout SeededGenerator) {
        deviceCount = 1 + random.below(3)
        snapshotsMax = 1 + random.below(6)
        extentsPerSource = random.oneIn(3) ? 1 : 64
        waitsLong = random.oneIn(2)
        policy =
            random.oneIn(2)
            ? OverflowPolicy(kind: .break, limitNanoseconds: waitsLong ? 1 << 50 : 150_000)
            : OverflowPolicy(kind: .throttle, limitNanoseconds: waitsLong ? 1 << 50 : 400_000)
        overlayWrites = random.oneIn(2)
        crashes = random.oneIn(4)
        copyCount = random.oneIn(3) ? 4 : 64
        reportsHoles = random.oneIn(2)
        scannedByteCountMin = 512 << UInt64(random.below(10))
        if random.oneIn(2) { shortTransfer = 40 }
        if random.oneIn(6) { layerByteCountMax = 1500 }
        isStorageSlow = random.oneIn(4)
        resizes = random.oneIn(3)
        guard random.oneIn(2) else { return }
        if random.oneIn(3) { originWriteFault = 100 }
        if random.oneIn(4) { copyReadFault = 300 }
        if random.oneIn(3) { imageReadFault = 100 }
        if random.oneIn(3) { storageWriteFault = 25 }
        if random.oneIn(4) { storageReadFault = 40 }
        if random.oneIn(4) { bitRot = 40 }
        if random.oneIn(12) { mapFault = 2 }
        if random.oneIn(3) { outages = true }
        if random.oneIn(3) { refusals = true }
    }

    /// True when nothing in this world may cost a snapshot its data.
    var isHarmless: Bool {
        copyReadFault == 0 && storageWriteFault == 0 && storageReadFault == 0 && bitRot == 0
            && extentsPerSource > 8 && waitsLong && layerByteCountMax > 100_000 && !outages
            && !refusals
    }
}
