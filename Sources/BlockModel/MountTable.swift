// What is mounted, as /proc/self/mountinfo tells it (proc_pid_mountinfo(5)):
//
//   36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sdb1 rw,errors=continue
//   id parent device root path options optional... - type source super-options
//
// Invariants
// - The bytes may be anything: a line that does not fit is refused by its number, nothing traps.
// - Mounts stand in the order in which they were made, which is the kernel's order of the lines.

/// A line that is not valid in a mount table.
package struct MountTableFault: Error, Equatable {
    /// Counted from 1.
    package let line: Int
}

/// A mount: a filesystem at a place.
package struct Mount: Equatable, Sendable {
    /// The kernel's number of the mount, unique while it exists.
    package let id: UInt64
    /// Its place in the order in which the mounts were made.
    package let position: Int
    /// The filesystem's number: that of its block device, or one without a device (major 0).
    package let device: DeviceNumber
    package let path: [UInt8]
    package let type: String
    /// What was mounted: the path of a block device, or whatever the filesystem makes of it.
    package let source: [UInt8]

    package init(
        id: UInt64, position: Int, device: DeviceNumber, path: [UInt8], type: String,
        source: [UInt8]
    ) {
        self.id = id
        self.position = position
        self.device = device
        self.path = path
        self.type = type
        self.source = source
    }

    /// The path, for people.
    package var name: String { String(decoding: path, as: UTF8.self) }
}

/// All mounts, in the order in which they were made.
package struct MountTable: Equatable, Sendable {
    package let mounts: [Mount]

    /// Reads the text of /proc/self/mountinfo.
    package init(parsing text: [UInt8]) throws(MountTableFault) {
        var mounts: [Mount] = []
        var number = 0
        for line in text.split(separator: 10, omittingEmptySubsequences: false) {
            number += 1
            if line.isEmpty { continue }
            guard let mount = Self.mount(line, position: number) else {
                throw MountTableFault(line: number)
            }
            mounts.append(mount)
        }
        self.mounts = mounts
    }

    /// The mounts of a text of which some lines may be unreadable: those are left out.
    package static func readableMounts(in text: [UInt8]) -> [Mount] {
        var number = 0
        return text.split(separator: 10, omittingEmptySubsequences: false).compactMap { line in
            number += 1
            return mount(line, position: number)
        }
    }

    private static func mount(_ line: ArraySlice<UInt8>, position: Int) -> Mount? {
        let fields = line.split(separator: 32, omittingEmptySubsequences: false)
        // Optional fields end with a lone dash.
        guard fields.count >= 9,
            let dash = fields.dropFirst(6).firstIndex(where: { $0.elementsEqual([45]) }),
            dash + 3 < fields.count,
            let id = UInt64(String(decoding: fields[0], as: UTF8.self)),
            let device = DeviceNumber(String(decoding: fields[2], as: UTF8.self))
        else { return nil }
        let path = OctalEscapes.removed(from: fields[4])
        guard path.first == UInt8(ascii: "/"), !path.contains(0) else { return nil }
        return Mount(
            id: id, position: position, device: device, path: path,
            type: String(decoding: OctalEscapes.removed(from: fields[dash + 1]), as: UTF8.self),
            source: OctalEscapes.removed(from: fields[dash + 2]))
    }
}
