package import BlockModel

/// How a device is asked for.
package struct AttachRequest: Equatable, Sendable {
    package let name: ObjectName
    /// Absolute.
    package let path: String
    package let isReadOnly: Bool
    /// 512 or 4096; nil: what the origin says.
    package let sectorBytes: UInt32?
    /// The operator's assurance that nobody else writes to the origin; of a live device, that no other
    /// system does, nor this one while the service does not track it.
    package let isExclusive: Bool
    /// Its users keep using the origin itself; its writes are tracked.
    package let isLive: Bool

    /// Checks what came from outside.
    package init(
        name: String, path: String, isReadOnly: Bool = false, sectorBytes: UInt32? = nil,
        isExclusive: Bool = false, isLive: Bool = false
    ) throws(ControlError) {
        guard let checked = ObjectName(name) else {
            throw ControlError(
                .invalid,
                "\"\(name)\" is not a valid name for a device: use 1 to 64 letters, digits, '.', '_' or "
                    + "'-', the first a letter or digit")
        }
        guard path.hasPrefix("/") || (isLive && LiveTag.isOne(path)), !path.utf8.contains(0),
            path.utf8.count < 4096
        else {
            throw ControlError(.invalid, "device \(name): give the absolute path of its origin")
        }
        if let sectorBytes, sectorBytes != 512 && sectorBytes != 4096 {
            throw ControlError(
                .invalid,
                "device \(name): sector size \(sectorBytes) is not offered; use 512 or 4096")
        }
        guard !isLive || !isReadOnly else {
            throw ControlError(
                .invalid,
                "device \(name): the service never writes to a live device; leave out read-only")
        }
        self.name = checked
        self.path = path
        self.isReadOnly = isReadOnly
        self.sectorBytes = sectorBytes
        self.isExclusive = isExclusive
        self.isLive = isLive
    }
}
