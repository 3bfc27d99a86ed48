package import BlockModel

// A request as it came over the wire, and what is to be done with it. Nobody else sees a header
// before `judge` has checked it.

/// The header of a request.
package struct NBDRequestHeader: Equatable, Sendable {
    package var flags: UInt16
    package var command: UInt16
    package var cookie: UInt64
    package var offset: UInt64
    package var length: UInt64

    package init(
        flags: UInt16, command: UInt16, cookie: UInt64, offset: UInt64, length: UInt64
    ) {
        self.flags = flags
        self.command = command
        self.cookie = cookie
        self.offset = offset
        self.length = length
    }

    /// Reads `style.requestHeaderByteCount` bytes; nil when the magic number is wrong.
    @inline(__always)
    package init?(decoding bytes: UnsafeRawPointer, style: NBDReplyStyle) {
        let isExtended = style == .extended
        guard
            bytes.wire(0, as: UInt32.self)
                == (isExtended ? NBDMagic.extendedRequest : NBDMagic.request)
        else { return nil }
        flags = bytes.wire(4, as: UInt16.self)
        command = bytes.wire(6, as: UInt16.self)
        cookie = bytes.wire(8, as: UInt64.self)
        offset = bytes.wire(16, as: UInt64.self)
        length =
            isExtended
            ? bytes.wire(24, as: UInt64.self) : UInt64(bytes.wire(24, as: UInt32.self))
    }
}

/// What a connection's requests are judged by.
package struct NBDRequestRules: Sendable {
    package var style: NBDReplyStyle
    package var isReadOnly: Bool
    package var hasContexts: Bool

    package init(style: NBDReplyStyle, isReadOnly: Bool, hasContexts: Bool) {
        self.style = style
        self.isReadOnly = isReadOnly
        self.hasContexts = hasContexts
    }
}

/// What to do with a request.
package struct NBDJudgement: Equatable, Sendable {
    /// The request itself.
    package enum Action: Equatable, Sendable {
        /// Hand it to the device.
        case serve(RequestOperation, RequestFlags)
        /// A block status request whose payload selects contexts.
        case serveStatusSubset
        /// Nothing to do: answer with success.
        case succeed
        case refuse(NBDErrorCode)
        /// The client says goodbye.
        case disconnect
        /// The protocol is broken: end the connection.
        case violation
    }

    package var action: Action
    /// Bytes of payload that follow the header; skipped unless the request is served.
    package var payloadByteCount: UInt64

    package init(_ action: Action, payloadByteCount: UInt64 = 0) {
        self.action = action
        self.payloadByteCount = payloadByteCount
    }
}

extension NBDRequestRules {
    /// Judges a request to an export of `size` bytes.
    package func judge(_ header: NBDRequestHeader, size: UInt64) -> NBDJudgement {
        let flags = NBDCommandFlags(rawValue: header.flags)
        let command = NBDCommand(rawValue: header.command)
        let payload = payloadByteCount(of: header, command, flags)
        guard payload <= NBDLimits.skippedByteCountMax else { return NBDJudgement(.violation) }
        if command == .write, style == .extended, !flags.contains(.payloadLength) {
            // Whether a payload follows cannot be known.
            return NBDJudgement(.violation)
        }
        guard let command else { return NBDJudgement(.refuse(.invalid), payloadByteCount: payload) }
        guard header.flags & ~allowedFlags(of: command) == 0 else {
            return NBDJudgement(.refuse(.invalid), payloadByteCount: payload)
        }
        return NBDJudgement(
            action(of: header, command, flags, size: size), payloadByteCount: payload)
    }

    @inline(__always)
    private func payloadByteCount(
        of header: NBDRequestHeader, _ command: NBDCommand?, _ flags: NBDCommandFlags
    ) -> UInt64 {
        style == .extended
            ? (flags.contains(.payloadLength) ? header.length : 0)
            : (command == .write ? header.length : 0)
    }

    /// Bits a command may carry. Plain integers here and below: a literal of an option set makes
    /// an array.
    @inline(__always)
    private func allowedFlags(of command: NBDCommand) -> UInt16 {
        let forced = NBDCommandFlags.forceUnitAccess.rawValue
        let payload = style == .extended ? NBDCommandFlags.payloadLength.rawValue : 0
        return switch command {
        case .read: style == .simple ? forced : forced | NBDCommandFlags.dontFragment.rawValue
        case .write: forced | payload
        case .writeZeroes:
            forced | NBDCommandFlags.noHole.rawValue | NBDCommandFlags.fastZero.rawValue
        case .blockStatus: forced | NBDCommandFlags.requestOne.rawValue | payload
        case .disconnect, .flush, .trim, .cache: forced
        }
    }

    @inline(__always)
    private func action(
        of header: NBDRequestHeader, _ command: NBDCommand, _ flags: NBDCommandFlags, size: UInt64
    ) -> NBDJudgement.Action {
        let none = RequestFlags(rawValue: 0)
        let forced = flags.contains(.forceUnitAccess) ? .forceUnitAccess : none
        let fits = header.offset <= size && header.length <= size - header.offset
        switch command {
        case .read:
            guard header.length <= NBDLimits.payloadByteCountMax else {
                return .refuse(flags.contains(.dontFragment) ? .overflow : .invalid)
            }
            guard fits else { return .refuse(.invalid) }
            return header.length == 0 ? .succeed : .serve(.read, none)
        case .write:
            guard !isReadOnly else { return .refuse(.notPermitted) }
            guard header.length <= NBDLimits.payloadByteCountMax else { return .refuse(.invalid) }
            guard fits else { return .refuse(.noSpace) }
            return header.length == 0 ? .succeed : .serve(.write, forced)
        case .disconnect:
            return .disconnect
        case .flush:
            return isReadOnly ? .succeed : .serve(.flush, none)
        case .trim:
            guard !isReadOnly else { return .refuse(.notPermitted) }
            guard fits else { return .refuse(.invalid) }
            return header.length == 0 ? .succeed : .serve(.discard, forced)
        case .cache:
            guard fits else { return .refuse(.invalid) }
            return header.length == 0 ? .succeed : .serve(.prefetch, none)
        case .writeZeroes:
            guard !isReadOnly else { return .refuse(.notPermitted) }
            guard fits else { return .refuse(.noSpace) }
            guard header.length > 0 else { return .succeed }
            var all = forced.rawValue
            if flags.contains(.noHole) { all |= RequestFlags.keepAllocated.rawValue }
            if flags.contains(.fastZero) { all |= RequestFlags.onlyFast.rawValue }
            return .serve(.writeZeroes, RequestFlags(rawValue: all))
        case .blockStatus:
            guard hasContexts else { return .refuse(.invalid) }
            if flags.contains(.payloadLength) {
                let isList = header.length >= 8 && (header.length - 8) % 4 == 0
                let idCount = (header.length &- 8) / 4
                return isList && idCount <= UInt64(NBDLimits.selectedContextCountMax)
                    ? .serveStatusSubset : .refuse(.invalid)
            }
            guard header.length > 0, fits else { return .refuse(.invalid) }
            return .serve(.blockStatus, flags.contains(.requestOne) ? .oneExtent : none)
        }
    }
}
