// One growth step of a file: which bytes to allocate next, and what came of it.
//
// A step that falls short keeps what it got, in whole extents. A piece that fails is tried again
// with half of its size, down to one extent; what it allocated half-way is given back by the one
// who performs the run.

/// A growth step under way. Pure; performed by the source's job.
package struct GrowthRun: Sendable {
    /// Bytes to allocate in one call.
    package struct Piece: Equatable, Sendable {
        package var byteOffset: UInt64
        package var byteCount: UInt64
        /// It lies behind the end: given back by cutting the file off.
        package var isTail: Bool

        package init(byteOffset: UInt64, byteCount: UInt64, isTail: Bool = false) {
            self.byteOffset = byteOffset
            self.byteCount = byteCount
            self.isTail = isTail
        }
    }

    /// Bytes that are allocated by one call: the end of a snapshot waits for one of them, and a
    /// filesystem may have to write them.
    package static let pieceByteCountMax: UInt64 = 64 << 20

    /// Bytes got behind the end.
    package private(set) var tailByteCount: UInt64 = 0
    /// Holes that are reserved again.
    package private(set) var filledHoles: [UInt64] = []
    /// The filesystem gave less than was asked for.
    package private(set) var isShort = false
    /// What the filesystem has beyond its reserve, as far as it was asked.
    package private(set) var room: UInt64?

    private let extentByteCount: UInt64
    /// What is still available, the last first.
    private var rest: [Piece]
    private var pieceByteCount: UInt64

    init(_ pieces: [Piece], extentByteCount: UInt64) {
        self.extentByteCount = extentByteCount
        rest = pieces.reversed()
        pieceByteCount = max(
            Self.pieceByteCountMax / extentByteCount * extentByteCount, extentByteCount)
    }

    /// Holes that were to be reserved and are not.
    package var missedHoles: [UInt64] { rest.filter { !$0.isTail }.map(\.byteOffset) }

    /// The next piece, when the filesystem has `room` bytes beyond its reserve (nil: it does not
    /// say); nil when the run is over. The caller says `succeeded` or `failed`.
    package mutating func next(room: UInt64?) -> Piece? {
        if let room { self.room = room }
        guard let target = rest.last, pieceByteCount > 0 else { return nil }
        var byteCount = min(target.byteCount, pieceByteCount)
        if let room, room < byteCount { byteCount = room / extentByteCount * extentByteCount }
        guard byteCount > 0 else {
            isShort = true
            return nil
        }
        return Piece(
            byteOffset: target.byteOffset, byteCount: byteCount, isTail: target.isTail)
    }

    /// The piece is allocated.
    package mutating func succeeded(_ piece: Piece) {
        guard var target = rest.popLast() else { preconditionFailure("a piece is of the run") }
        precondition(
            target.byteOffset == piece.byteOffset && piece.byteCount <= target.byteCount,
            "pieces are allocated in order")
        if piece.isTail {
            tailByteCount += piece.byteCount
        } else {
            filledHoles.append(piece.byteOffset)
        }
        if let seen = room { room = seen - min(piece.byteCount, seen) }
        target.byteOffset += piece.byteCount
        target.byteCount -= piece.byteCount
        if target.byteCount > 0 { rest.append(target) }
    }

    /// The piece could not be allocated, and nothing of it is.
    package mutating func failed(_ piece: Piece) {
        isShort = true
        pieceByteCount = piece.byteCount / 2 / extentByteCount * extentByteCount
    }
}
