internal import BlockModel
package import CopyPlanning
package import NBDAccess
internal import Synchronization

// A connection that reads pieces of an image and writes them to the target, many requests in
// flight. Several workers share the pieces of one copy.
//
// Invariants
// - A slot is free, or belongs to one read that is under way; its cookie is its place.
// - A read is written to the target when all of its bytes came, each once.

/// One connection of a copy; see the head of this file.
package final class CopyWorker: @unchecked Sendable {
    // SAFETY: used by one thread at a time: the one that runs `work`.

    /// Most reads in flight.
    private static let slotCount = 64
    /// Most bytes of a read.
    private static let readByteCount = 128 << 10
    /// Most bytes in flight: what is in flight should fit into the processor's cache. Of the buffer only what
    /// large reads use becomes resident.
    private static let inFlightByteCountMax: UInt64 = 2 << 20
    /// From this length on it pays to ask how a piece lies before it is read.
    private static let statusByteCountMin: UInt64 = 1 << 20
    private static let statusCookie = UInt64.max
    /// Most gaps in what came of a read: servers cut where extents end, rarely below 4 KiB.
    private static let partCountMax = 128
    /// Most extents of one block status: a piece is at most 256 MiB of blocks of 512 bytes.
    private static let extentCountMax = 1 << 19

    /// What is done, and with which target.
    private struct Share {
        let pieces: CopyWork
        let target: any CopySink
        let isFresh: Bool
    }

    private struct Slot {
        var range = ByteRange(offset: 0, length: 0)
        /// The result: parts that neither overlap nor touch.
        private var parts: [ByteRange] = []

        init() {}

        init(_ range: ByteRange) { self.range = range }

        /// Bytes that came.
        var receivedByteCount: UInt64 { parts.reduce(0) { $0 + $1.length } }

        /// Notes bytes that come; false when they are not its own, came before, or come in
        /// more pieces than anybody needs.
        mutating func take(_ offset: UInt64, _ byteCount: UInt64) -> Bool {
            guard offset >= range.offset, offset <= range.end, byteCount > 0,
                byteCount <= range.end - offset
            else { return false }
            var part = ByteRange(offset: offset, length: byteCount)
            guard !parts.contains(where: { $0.overlaps(part) }) else { return false }
            // Nearly always there is one that it continues.
            for place in parts.indices.reversed()
            where parts[place].end == part.offset || part.end == parts[place].offset {
                let other = parts.remove(at: place)
                part = ByteRange(
                    offset: min(part.offset, other.offset), length: part.length + other.length)
            }
            parts.append(part)
            return parts.count <= CopyWorker.partCountMax
        }
    }

    private let reader: NBDExport
    private let buffer: UnsafeMutableRawPointer
    private var slots = Array(repeating: Slot(), count: slotCount)
    private var free = Array(0..<slotCount)
    /// Bytes of reads in flight.
    private var inFlightByteCount: UInt64 = 0

    /// Connects to an image.
    package convenience init(
        _ address: NBDServerAddress, export: String
    ) throws(NBDAccessError) {
        self.init(try NBDExport(address, export: export))
    }

    /// Continues with a connection to an image.
    init(_ reader: NBDExport) {
        self.reader = reader
        buffer = .allocate(
            byteCount: Self.slotCount * Self.readByteCount, alignment: Int(blockByteCount))
    }

    deinit { buffer.deallocate() }

    /// Bytes of the image.
    package var imageSize: UInt64 { reader.size }

    /// Copies pieces until none is left or something failed. `isFresh`: what is not written to
    /// the target reads as zero.
    package func work(_ work: CopyWork, into target: any CopySink, isFresh: Bool) {
        let share = Share(pieces: work, target: target, isFresh: isFresh)
        do throws(CopyError) {
            while let piece = work.next() {
                if piece.length >= Self.statusByteCountMin, reader.hasAllocation {
                    try copyByStatus(piece, share)
                } else {
                    try read(piece, share)
                }
            }
            try finishReads(share)
            try target.drain()
        } catch { work.failed(error) }
    }

    private func unreadable(_ error: NBDAccessError) -> CopyError {
        CopyError(.unreadable, "the image cannot be read: \(error)")
    }

    // MARK: Status

    private func copyByStatus(_ piece: ByteRange, _ share: Share) throws(CopyError) {
        var position = piece.offset
        while position < piece.end {
            for extent in try status(from: position, to: piece.end, share) {
                let length = min(extent.length, piece.end - position)
                let range = ByteRange(offset: position, length: length)
                if extent.isZero {
                    try zero(range, share)
                    share.target.finished(range, of: share.pieces)
                } else {
                    try read(range, share)
                }
                position += length
                if position == piece.end { break }
            }
        }
    }

    /// Extents that describe some bytes from `start` on. Reads that end meanwhile are written.
    private func status(
        from start: UInt64, to end: UInt64, _ share: Share
    ) throws(CopyError) -> [NBDExport.Extent] {
        reader.requestStatus(cookie: Self.statusCookie, offset: start, length: end - start)
        var extents: [NBDExport.Extent] = []
        while true {
            let piece = try receive()
            guard piece.cookie == Self.statusCookie else {
                try came(piece, share)
                continue
            }
            extents += piece.extents
            guard extents.count <= Self.extentCountMax else {
                throw unreadable(.notUnderstood("a block status without end"))
            }
            guard piece.isLast else { continue }
            guard let first = extents.first, first.length > 0 else {
                throw unreadable(.notUnderstood("a block status without extents"))
            }
            return extents.filter { $0.length > 0 }
        }
    }

    // MARK: Reads

    /// Asks for a range; its bytes are written when they come.
    private func read(_ range: ByteRange, _ share: Share) throws(CopyError) {
        var offset = range.offset
        while offset < range.end {
            let length = min(range.end - offset, UInt64(Self.readByteCount))
            if free.isEmpty || inFlightByteCount + length > Self.inFlightByteCountMax {
                try makeRoom(share)
            }
            guard let place = free.popLast() else {
                preconditionFailure("room was made for a read")
            }
            slots[place] = Slot(ByteRange(offset: offset, length: length))
            inFlightByteCount += length
            reader.requestRead(cookie: UInt64(place), offset: offset, length: Int(length))
            offset += length
        }
    }

    /// Receives until half of what may be in flight has come. New requests are sent when the next reply
    /// is waited for, so many of them go in one call.
    private func makeRoom(_ share: Share) throws(CopyError) {
        while free.count < slots.count / 2
            || inFlightByteCount > Self.inFlightByteCountMax / 2
        {
            try came(try receive(), share)
        }
    }

    private func finishReads(_ share: Share) throws(CopyError) {
        while free.count < slots.count { try came(try receive(), share) }
    }

    private func receive() throws(CopyError) -> NBDExport.Piece {
        do throws(NBDAccessError) {
            let piece = try reader.next { cookie, offset, byteCount in
                guard cookie < UInt64(slots.count),
                    slots[Int(cookie)].take(offset, UInt64(byteCount))
                else { return nil }
                return slotAddress(Int(cookie)) + Int(offset - slots[Int(cookie)].range.offset)
            }
            if let number = piece.errorNumber { throw .failed(number: number) }
            return piece
        } catch { throw unreadable(error) }
    }

    private func slotAddress(_ place: Int) -> UnsafeMutableRawPointer {
        buffer + place * Self.readByteCount
    }

    /// A piece of a read is there.
    private func came(_ piece: NBDExport.Piece, _ share: Share) throws(CopyError) {
        guard piece.cookie < UInt64(slots.count), !slots[Int(piece.cookie)].range.isEmpty else {
            throw unreadable(.notUnderstood("a reply to nothing"))
        }
        let place = Int(piece.cookie)
        guard piece.isLast else { return }
        let range = slots[place].range
        let receivedByteCount = slots[place].receivedByteCount
        guard receivedByteCount == range.length else {
            throw unreadable(.notUnderstood("\(receivedByteCount) of \(range.length) bytes"))
        }
        share.pieces.readByteCount.add(range.length, ordering: .relaxed)
        try store(range, slotAddress(place), share)
        share.target.finished(range, of: share.pieces)
        slots[place] = Slot()
        inFlightByteCount -= range.length
        free.append(place)
    }

    // MARK: Target

    private func store(
        _ range: ByteRange, _ bytes: UnsafeRawPointer, _ share: Share
    ) throws(CopyError) {
        try share.pieces.store(range, bytes, into: share.target, isFresh: share.isFresh)
    }

    private func zero(_ range: ByteRange, _ share: Share) throws(CopyError) {
        try share.pieces.zero(range, of: share.target, isFresh: share.isFresh)
    }
}
