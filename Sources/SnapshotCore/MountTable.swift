package import BlockModel

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

    private static func mount(_ line: ArraySlice<UInt8>, position: Int) -> Mount? {
        let fields = line.split(separator: 32, omittingEmptySubsequences: false)
        // Optional fields end with a lone dash.
        guard fields.count >= 9,
            let dash = fields.dropFirst(6).firstIndex(where: { $0.elementsEqual([45]) }),
            dash + 3 < fields.count,
            let id = UInt64(String(decoding: fields[0], as: UTF8.self)),
            let device = DeviceNumber(String(decoding: fields[2], as: UTF8.self))
        else { return nil }
        let path = unescaped(fields[4])
        guard path.first == UInt8(ascii: "/"), !path.contains(0) else { return nil }
        return Mount(
            id: id, position: position, device: device, path: path,
            type: String(decoding: unescaped(fields[dash + 1]), as: UTF8.self),
            source: unescaped(fields[dash + 2]))
    }

    /// Undoes the kernel's `\040` for bytes that would break the line; any other backslash stands
    /// for itself.
    static func unescaped(_ field: ArraySlice<UInt8>) -> [UInt8] {
        var bytes: [UInt8] = []
        bytes.reserveCapacity(field.count)
        var index = field.startIndex
        while index < field.endIndex {
            if field[index] == UInt8(ascii: "\\"), field.endIndex - index > 3,
                let byte = octal(field[(index + 1)...(index + 3)])
            {
                bytes.append(byte)
                index += 4
            } else {
                bytes.append(field[index])
                index += 1
            }
        }
        return bytes
    }

    private static func octal(_ digits: ArraySlice<UInt8>) -> UInt8? {
        var value = 0
        for digit in digits {
            guard (48...55).contains(digit) else { return nil }
            value = value * 8 + Int(digit - 48)
        }
        return UInt8(exactly: value)
    }
}
