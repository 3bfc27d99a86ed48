import Foundation
import Glibc
import TestSupport
import Testing

/// The guide to virtual machines, run as it stands: places and users are others.
@Suite(.enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"))
struct `The guide to virtual machines` {
    private static let guide = "docs/virtual-machines.md"

    @Test(
        .enabled(if: Command.exists("qemu-system-x86_64"), "qemu-system-x86 is not installed"),
        .enabled(if: Command.exists("as") && Command.exists("objcopy"), "binutils is not installed")
    )
    func `keeps a guest running while the service is restarted and killed`() throws {
        let guide = try Guide(Self.guide)
        let place = try GuidePlace(["srv"])
        let service = try TestService(attaching: [:])
        place.environment["STILLPOINT_CONTROL"] = service.controlPath
        place.replacements.append(("/run/stillpoint/nbd.sock", service.socketPath))
        // Without a screen, in less memory, and emulated: not every /dev/kvm runs such a guest.
        try place.addTool(
            "qemu-system-x86_64",
            """
            #!/bin/bash
            shift 6
            echo $$ >'\(place.path("qemu.pid"))'
            exec \(Self.program("qemu-system-x86_64")) -accel tcg -m 64M \
                -display none -serial 'file:\(place.path("serial"))' "$@"

            """)
        try WritingGuest.make(at: place.path("work/disk.raw"), byteCount: 4 << 20)
        let prepared = try place.run(
            place.placed(
                """
                qemu-img convert -O qcow2 disk.raw vm1.qcow2
                stillpoint device attach wrong vm1.qcow2 2>warning
                grep 'looks like a qcow2 image' warning
                stillpoint device detach wrong

                """ + guide.commands()))
        #expect(prepared.status == 0, "\(prepared.diagnostics)")
        let machine = try ChildProcess(
            "bash", ["-c", "exec " + place.placed(try guide.commands("qemu"))],
            environment: ["PATH": place.path("bin") + ":/usr/bin:/bin"],
            diagnostics: place.path("qemu.log"))
        let serial = WritingGuest.Progress(path: place.path("serial"))
        func diagnosis() -> String {
            let log = try? String(contentsOfFile: place.path("qemu.log"), encoding: .utf8)
            return "\(serial.text.suffix(20)) \(log ?? "") \(service.log)"
        }
        for isKilled in [false, true] {
            #expect(try serial.grows(by: 20), "\(diagnosis())")
            if isKilled {
                try service.process.killAndWait()
            } else {
                #expect(try service.stop() == .exited(0))
            }
            try service.restart()
        }
        #expect(try serial.grows(by: 20), "\(diagnosis())")
        #expect(!serial.text.contains("E"), "\(diagnosis())")
        machine.send(signal: SIGTERM)
        _ = try machine.wait(deadline: 60)
        try WritingGuest.check(place.path("srv/vm1.img"), after: serial.text.count)
    }

    @Test(
        .enabled(if: isRoot, "it needs root"),
        .enabled(if: Command.exists("nbdinfo"), "libnbd's tools are not installed"))
    func `lets the user that runs QEMU in by a second socket`() throws {
        let place = try GuidePlace(["srv"])
        // Others must be able to enter what is above the socket, as they can enter /run.
        try Command.check("chmod", ["0711", place.directory.root])
        place.replacements += [
            ("/run/stillpoint/", place.path("run") + "/"),
            ("/run/stillpoint-vm", place.path("vm")),
            ("libvirt-qemu", "nobody"), ("-g kvm", "-g nogroup"),
        ]
        let outcome = try place.run(
            place.placed(
                "truncate -s 1M /srv/vm1.img\n" + (try Guide(Self.guide).commands("socket"))
                    + """
                    stillpoint device attach vm1 /srv/vm1.img
                    setpriv --reuid=nobody --regid=nogroup --clear-groups \
                        nbdinfo --size 'nbd+unix:///vm1?socket=\(place.path("vm"))/nbd.sock'
                    """))
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(place.log)")
        #expect(outcome.output.hasSuffix("\n1048576\n"), "\(outcome.output)")
    }

    @Test(.enabled(if: Command.exists("virsh"), "libvirt-clients is not installed"))
    func `has a disk and a hook that libvirt takes`() throws {
        let guide = try Guide(Self.guide)
        let place = try GuidePlace(["srv", "backup", "etc/stillpoint"])
        // libvirt's driver for tests: it reads the machine as the others do, and runs none.
        try """
        <node>
          <domain type='test'>
            <name>vm1</name><memory>65536</memory><os><type>hvm</type></os>
            <devices>
              \(try guide.text("xml"))
              <channel type='unix'>
                <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
              </channel>
            </devices>
          </domain>
        </node>
        """.write(toFile: place.path("machines.xml"), atomically: true, encoding: .utf8)
        place.environment["LIBVIRT_DEFAULT_URI"] = "test://" + place.path("machines.xml")
        try place.placed(guide.text("sh", "/etc/stillpoint/freeze-vm1")).write(
            toFile: place.path("etc/stillpoint/freeze-vm1"), atomically: true, encoding: .utf8)
        let outcome = try place.run(
            place.placed(
                """
                virsh dumpxml vm1 >machine.xml
                grep "protocol='nbd' name='vm1'" machine.xml
                grep "reconnect delay='300'" machine.xml ||
                    [[ $(virsh --version) == 9.0.* ]] # as the guide says
                chmod +x /etc/stillpoint/freeze-vm1
                truncate -s 1M /srv/vm1.img
                stillpoint serve --attach vm1=/srv/vm1.img

                """ + (try guide.commands("backup"))))
        #expect(outcome.status == 0, "\(outcome.diagnostics)\n\(outcome.output)\n\(place.log)")
        #expect(outcome.output.contains("destroyed"), "\(outcome.output)")
    }

    /// Where a program is that one of the same name stands in front of.
    private static func program(_ name: String) -> String {
        ["/usr/bin/", "/usr/local/bin/"].map { $0 + name }.first { access($0, X_OK) == 0 } ?? name
    }
}

/// A guest without an operating system: its boot sector writes sectors with a rising number, reads
/// each back, and says on the serial line how it went, a dot or an E.
private enum WritingGuest {
    private static let firstSector = 8
    private static let sectorCount = 1024

    private static let source = """
        .code16
        start:  xorw %ax, %ax
                movw %ax, %ds
                movw %ax, %es
                movw %ax, %ss
                movw $0x7c00, %sp
                movb %dl, (drive)
        again:  incl (number)
                movl (number), %eax
                movl %eax, 0x8000
                andl $\(sectorCount - 1), %eax
                addl $\(firstSector), %eax
                movl %eax, (sector)
                movw $0x8000, (buffer)
                movw $0x4300, %ax
                call disk
                movw $0x8200, (buffer)
                movw $0x4200, %ax
                call disk
                movl 0x8200, %eax
                cmpl (number), %eax
                jne  wrong
                movb $'.', %al
                jmp  say
        wrong:  movb $'E', %al
        say:    movw $0x3f8, %dx
                outb %al, %dx
                jmp  again
        disk:   movw $packet, %si
                movb (drive), %dl
                int  $0x13
                jc   failed
                ret
        failed: popw %ax
                jmp  wrong
        packet: .byte 16, 0
                .word 1
        buffer: .word 0, 0
        sector: .long 0, 0
        number: .long 0
        drive:  .byte 0
                .org 510
                .word 0xaa55

        """

    /// Makes a disk that a machine boots from.
    static func make(at path: String, byteCount: Int) throws {
        let work = try TemporaryDirectory()
        try source.write(toFile: work.path("guest.s"), atomically: true, encoding: .utf8)
        try Command.check("as", ["--32", "-o", work.path("guest.o"), work.path("guest.s")])
        try Command.check(
            "ld",
            [
                "-m", "elf_i386", "-Ttext=0x7c00", "-e", "0x7c00", "--oformat=binary", "-o", path,
                work.path("guest.o"),
            ])
        try Command.check("truncate", ["-s", "\(byteCount)", path])
    }

    /// The last number that the guest was told to be written is in the image, or a later one.
    static func check(_ path: String, after count: Int) throws {
        let image = try Data(contentsOf: URL(filePath: path))
        func number(_ place: Int) -> Int {
            let offset = (firstSector + place) * 512
            return image[offset..<offset + 4].reversed().reduce(0) { $0 << 8 | Int($1) }
        }
        let found = number(count % sectorCount)
        #expect(found >= count && (found - count) % sectorCount == 0, "\(found) for \(count)")
    }

    /// What the guest has said.
    struct Progress {
        let path: String

        var text: String {
            // Before the machine runs there is no file.
            (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        }

        /// Waits until the guest has said more; the limit only detects hangs.
        func grows(by count: Int) throws -> Bool {
            let wanted = text.count + count
            let end = monotonicSeconds() + 120
            while text.count < wanted {
                guard monotonicSeconds() < end else { return false }
                // Between two looks at the file; what is waited for is the file.
                usleep(20_000)
            }
            return true
        }
    }
}
