/// How replies of a connection look.
@usableFromInline package enum NBDReplyMode: Sendable {
    case simple
    case structured
    case extended
}

/// The header of a request.
@usableFromInline package struct NBDRequestHeader: Equatable, Sendable {
    @usableFromInline package var flags: UInt16
    @usableFromInline package var type: UInt16
    @usableFromInline package var cookie: UInt64
    /// Bytes of the export.
    @usableFromInline package var offset: UInt64
    @usableFromInline package var length: UInt64

    /// A header with these fields. What the mode has no room for is cut off: of `length` all but 32
    /// bits, unless headers are extended.
    package init(flags: UInt16, type: UInt16, cookie: UInt64, offset: UInt64, length: UInt64) {
        self.flags = flags
        self.type = type
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }

    /// Decodes a header of the mode's size; nil when the magic number is wrong.
    @inlinable
    package init?(decoding bytes: UnsafeRawPointer, mode: NBDReplyMode) {
        let isExtended = mode == .extended
        let magic: UInt32 = bytes.loadBigEndian(at: 0)
        guard magic == (isExtended ? NBD.extendedRequestMagic : NBD.requestMagic) else {
            return nil
        }
        flags = bytes.loadBigEndian(at: 4)
        type = bytes.loadBigEndian(at: 6)
        cookie = bytes.loadBigEndian(at: 8)
        offset = bytes.loadBigEndian(at: 16)
        if isExtended {
            length = bytes.loadBigEndian(at: 24)
        } else {
            let short: UInt32 = bytes.loadBigEndian(at: 24)
            length = UInt64(short)
        }
    }

    /// The header as it goes out in the mode.
    package func encoded(in mode: NBDReplyMode) -> [UInt8] {
        let isExtended = mode == .extended
        var bytes: [UInt8] = []
        bytes.append(wire: isExtended ? NBD.extendedRequestMagic : NBD.requestMagic)
        bytes.append(wire: flags)
        bytes.append(wire: type)
        bytes.append(wire: cookie)
        bytes.append(wire: offset)
        if isExtended {
            bytes.append(wire: length)
        } else {
            bytes.append(wire: UInt32(truncatingIfNeeded: length))
        }
        return bytes
    }

    /// Whether `length` bytes follow the header. Those of a write do, whatever its flags: QEMU up
    /// to 10 at least leaves the payload flag out, and its data must never be taken for requests.
    @inlinable
    package func hasPayload(in mode: NBDReplyMode) -> Bool {
        type == NBD.Command.write.rawValue
            || mode == .extended && flags & NBD.CommandFlag.payloadLength != 0
    }

    /// Bytes of a header in the mode.
    @inlinable
    package static func byteCount(in mode: NBDReplyMode) -> Int {
        mode == .extended ? NBD.extendedRequestByteCount : NBD.requestByteCount
    }
}
