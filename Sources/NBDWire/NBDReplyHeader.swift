/// Writes the headers of replies into memory of their size.
@usableFromInline package enum NBDReplyHeader {
    /// `NBD.simpleReplyByteCount` bytes; `error` 0: the request was performed.
    @inlinable
    package static func writeSimple(
        _ place: UnsafeMutableRawPointer, error: UInt32, cookie: UInt64
    ) {
        place.storeBigEndian(NBD.simpleReplyMagic, at: 0)
        place.storeBigEndian(error, at: 4)
        place.storeBigEndian(cookie, at: 8)
    }

    /// `NBD.structuredReplyByteCount` bytes; `length` bytes of the chunk follow.
    @inlinable
    package static func writeStructured(
        _ place: UnsafeMutableRawPointer, flags: UInt16, type: NBD.Chunk, cookie: UInt64,
        length: UInt32
    ) {
        place.storeBigEndian(NBD.structuredReplyMagic, at: 0)
        place.storeBigEndian(flags, at: 4)
        place.storeBigEndian(type.rawValue, at: 6)
        place.storeBigEndian(cookie, at: 8)
        place.storeBigEndian(length, at: 16)
    }

    /// `NBD.extendedReplyByteCount` bytes; `length` bytes of the chunk follow. `offset`: of the
    /// request.
    @inlinable
    package static func writeExtended(
        _ place: UnsafeMutableRawPointer, flags: UInt16, type: NBD.Chunk, cookie: UInt64,
        offset: UInt64, length: UInt64
    ) {
        place.storeBigEndian(NBD.extendedReplyMagic, at: 0)
        place.storeBigEndian(flags, at: 4)
        place.storeBigEndian(type.rawValue, at: 6)
        place.storeBigEndian(cookie, at: 8)
        place.storeBigEndian(offset, at: 16)
        place.storeBigEndian(length, at: 24)
    }
}

/// The header of a chunk of a structured or extended reply, as it came in.
package struct NBDChunkHeader: Equatable, Sendable {
    package let flags: UInt16
    /// An `NBD.Chunk`, if the client knows it.
    package let type: UInt16
    package let cookie: UInt64
    /// Bytes that follow, as the server says: nobody has compared them with a limit.
    package let length: UInt64

    /// Decodes a header that has the mode's size and begins with its magic number.
    package init(decoding bytes: [UInt8], mode: NBDReplyMode) {
        flags = bytes.wire(at: 4)
        type = bytes.wire(at: 6)
        cookie = bytes.wire(at: 8)
        length =
            mode == .extended
            ? bytes.wire(at: 24, as: UInt64.self) : UInt64(bytes.wire(at: 16, as: UInt32.self))
    }

    /// What a header begins with in the mode, which is not `simple`.
    package static func magic(in mode: NBDReplyMode) -> UInt32 {
        mode == .extended ? NBD.extendedReplyMagic : NBD.structuredReplyMagic
    }

    /// Bytes of a header in the mode, which is not `simple`.
    package static func byteCount(in mode: NBDReplyMode) -> Int {
        mode == .extended ? NBD.extendedReplyByteCount : NBD.structuredReplyByteCount
    }
}
