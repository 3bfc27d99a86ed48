import BlockModel
import Testing

@Suite struct `The mount table` {
    private func table(_ text: String) throws(MountTableFault) -> MountTable {
        try MountTable(parsing: Array(text.utf8))
    }

    @Test func `is read as the kernel writes it`() throws {
        let table = try table(
            """
            22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
            36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw
            40 22 0:31 /sub /srv/b rw - btrfs /dev/sdb rw,subvol=/sub
            41 22 0:32 / /tmp rw - tmpfs  rw

            """)
        #expect(table.mounts.map(\.id) == [22, 36, 40, 41])
        #expect(table.mounts.map(\.name) == ["/", "/mnt2", "/srv/b", "/tmp"])
        #expect(table.mounts.map(\.device.description) == ["8:1", "98:0", "0:31", "0:32"])
        #expect(table.mounts.map(\.type) == ["ext4", "ext3", "btrfs", "tmpfs"])
        #expect(table.mounts[2].source == Array("/dev/sdb".utf8))
        #expect(table.mounts[3].source.isEmpty)
        #expect(table.mounts.map(\.position) == [1, 2, 3, 4])
    }

    @Test func `has names with blanks, newlines, backslashes and bytes that are no text`() throws {
        let line = Array(#"7 1 7:0 / /a\040b\011c\012d\134e\"#.utf8) + [0xff, 0xfe]
        let table = try MountTable(parsing: line + Array(" rw - ext4 /dev/x\\040y rw\n".utf8))
        #expect(table.mounts[0].path == Array("/a b\tc\nd\\e\\".utf8) + [0xff, 0xfe])
        #expect(table.mounts[0].source == Array("/dev/x y".utf8))
    }

    @Test func `keeps backslashes that begin no byte`() throws {
        let table = try table(#"7 1 7:0 / /a\4\999\777\08 rw - ext4 x rw"#)
        #expect(table.mounts[0].name == #"/a\4\999\777\08"#)
    }

    @Test(
        arguments: [
            "x", "1 2 3:4", "1 2 3:4 / /m rw - ext4", "1 2 3:4 / /m rw ext4 src rw x",
            "a 2 3:4 / /m rw - ext4 src rw", "1 2 3-4 / /m rw - ext4 src rw",
            "1 2 3: / /m rw - ext4 src rw", "99999999999999999999 2 3:4 / /m rw - ext4 src rw",
            "1 2 4294967296:4 / /m rw - ext4 src rw", "1 2 3:4 / m rw - ext4 src rw",
            #"1 2 3:4 / /m\000 rw - ext4 src rw"#,
        ])
    func `refuses a line that does not fit, by its number`(line: String) {
        do throws(MountTableFault) {
            let read = try table("7 1 7:0 / /a rw - ext4 /dev/x rw\n" + line)
            Issue.record("it was read: \(read)")
        } catch { #expect(error.line == 2) }
    }

    @Test func `bears any bytes`() {
        var generator = SystemRandomNumberGenerator()
        let pieces = [
            "7", " ", " - ", "7:0", "/", "\\", "\\04", "\\040", "\n", "ext4", "\u{0}", ":",
        ]
        for _ in 0..<2000 {
            var bytes: [UInt8] = []
            for _ in 0..<Int.random(in: 0..<40, using: &generator) {
                if Bool.random(using: &generator) {
                    bytes += Array((pieces.randomElement(using: &generator) ?? "").utf8)
                } else {
                    bytes.append(.random(in: 0...255, using: &generator))
                }
            }
            // What it says is not what matters here.
            _ = try? MountTable(parsing: bytes)
        }
    }

    @Test func `device numbers are what stat says, taken apart`() {
        #expect(DeviceNumber(statNumber: 0x0801) == DeviceNumber(major: 8, minor: 1))
        #expect(
            DeviceNumber(statNumber: 0x0001_2000_6783_459a)
                == DeviceNumber(major: 0x12345, minor: 0x6789a))
        #expect(DeviceNumber("7:3") == DeviceNumber(major: 7, minor: 3))
        #expect(DeviceNumber("7") == nil && DeviceNumber("7:3:1") == nil)
    }
}
