package import BlockModel

/// What is mounted in a mount namespace.
package enum Mounts {
    /// The mounts that `process`, a directory in /proc, sees, in the order in which they were made.
    /// Lines that cannot be read are left out. Blocks.
    package static func all(seenBy process: String = "/proc/self") -> [Mount] {
        let text = SystemFile.readBytes(process + "/mountinfo", byteCountMax: byteCountMax) ?? []
        return MountTable.readableMounts(in: text)
    }

    /// Room for some 200,000 mounts.
    private static let byteCountMax = 64 << 20
}
