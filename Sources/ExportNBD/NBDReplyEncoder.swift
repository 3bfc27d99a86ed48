internal import BlockModel

// Replies as bytes. A header goes into `headerByteCountMax` bytes of room; the payload, if any, is
// sent behind it from where it lies.

/// Writes reply headers of one style.
package struct NBDReplyEncoder: Sendable {
    /// Room every header fits in: 32 bytes, an error with its length, and a message.
    package static let headerByteCountMax = 128

    package let style: NBDReplyStyle

    package init(style: NBDReplyStyle) { self.style = style }

    /// Success without data.
    @inline(__always)
    package func success(
        cookie: UInt64, offset: UInt64, into room: UnsafeMutableRawPointer
    ) -> Int {
        guard style != .simple else { return simple(error: 0, cookie: cookie, into: room) }
        return chunk(
            .none, flags: nbdChunkDone, cookie: cookie, offset: offset, byteCount: 0, into: room)
    }

    /// Success with `byteCount` (more than 0) bytes of data behind the header.
    @inline(__always)
    package func data(
        cookie: UInt64, offset: UInt64, byteCount: Int, into room: UnsafeMutableRawPointer
    ) -> Int {
        guard style != .simple else { return simple(error: 0, cookie: cookie, into: room) }
        let header = chunk(
            .offsetData, flags: nbdChunkDone, cookie: cookie, offset: offset,
            byteCount: UInt64(byteCount) + 8, into: room)
        room.putWire(header, offset)
        return header + 8
    }

    /// A failure, with its message where the style carries one.
    package func failure(
        _ code: NBDErrorCode, cookie: UInt64, offset: UInt64, into room: UnsafeMutableRawPointer
    ) -> Int {
        guard style != .simple else {
            return simple(error: code.rawValue, cookie: cookie, into: room)
        }
        let text = code.message
        let textByteCount = min(text.utf8CodeUnitCount, Self.headerByteCountMax - 38)
        let header = chunk(
            .error, flags: nbdChunkDone, cookie: cookie, offset: offset,
            byteCount: UInt64(6 + textByteCount), into: room)
        room.putWire(header, code.rawValue)
        room.putWire(header + 4, UInt16(textByteCount))
        (room + header + 6).copyMemory(from: text.utf8Start, byteCount: textByteCount)
        return header + 6 + textByteCount
    }

    /// The head of a block status chunk; its extents, encoded by `extents`, follow it.
    package func status(
        cookie: UInt64, offset: UInt64, contextID: UInt32, extentCount: Int, isLast: Bool,
        into room: UnsafeMutableRawPointer
    ) -> Int {
        let flags = isLast ? nbdChunkDone : 0
        if style == .extended {
            let header = chunk(
                .blockStatusExtended, flags: flags, cookie: cookie, offset: offset,
                byteCount: UInt64(8 + 16 * extentCount), into: room)
            room.putWire(header, contextID)
            room.putWire(header + 4, UInt32(extentCount))
            return header + 8
        }
        let header = chunk(
            .blockStatus, flags: flags, cookie: cookie, offset: offset,
            byteCount: UInt64(4 + 8 * extentCount), into: room)
        room.putWire(header, contextID)
        return header + 4
    }

    /// Turns the `StatusExtent` records in `memory` into what goes over the wire, in place, and
    /// returns how many remain: one when `limit` (the length asked for) is given, cut to it.
    /// Compact extents hold 32-bit lengths: a longer one is cut to a whole number of blocks and
    /// ends the list; the client asks again from there.
    package func extents(
        in memory: UnsafeMutableRawPointer, recordByteCount: Int, onlyOneUpTo limit: UInt64?
    ) -> Int {
        let stride = MemoryLayout<StatusExtent>.stride
        var count = recordByteCount / stride
        if limit != nil { count = min(count, 1) }
        for index in 0..<count {
            // Each record is read before the same or an earlier place is written.
            let record = memory.loadUnaligned(
                fromByteOffset: index * stride, as: StatusExtent.self)
            let length = min(record.length, limit ?? .max)
            if style == .extended {
                memory.putWire(index * 16, length)
                memory.putWire(index * 16 + 8, record.flags)
                continue
            }
            let isCut = length > UInt64(UInt32.max)
            memory.putWire(
                index * 8, isCut ? Self.compactLengthMax : UInt32(truncatingIfNeeded: length))
            memory.putWire(index * 8 + 4, UInt32(truncatingIfNeeded: record.flags))
            if isCut { return index + 1 }
        }
        return count
    }

    /// Bytes of one extent on the wire.
    package var extentByteCount: Int { style == .extended ? 16 : 8 }

    /// Longest compact extent: whole blocks below 2^32.
    package static let compactLengthMax = UInt32.max - UInt32(blockByteCount - 1)

    @inline(__always)
    private func simple(error: UInt32, cookie: UInt64, into room: UnsafeMutableRawPointer) -> Int {
        room.putWire(0, NBDMagic.simpleReply)
        room.putWire(4, error)
        room.putWire(8, cookie)
        return 16
    }

    @inline(__always)
    private func chunk(
        _ type: NBDChunkType, flags: UInt16, cookie: UInt64, offset: UInt64, byteCount: UInt64,
        into room: UnsafeMutableRawPointer
    ) -> Int {
        room.putWire(4, flags)
        room.putWire(6, type.rawValue)
        room.putWire(8, cookie)
        if style == .extended {
            room.putWire(0, NBDMagic.extendedReply)
            room.putWire(16, offset)
            room.putWire(24, byteCount)
            return 32
        }
        room.putWire(0, NBDMagic.structuredReply)
        // Bounded by the largest payload and its offset, far below 2^32.
        room.putWire(16, UInt32(byteCount))
        return 20
    }
}
