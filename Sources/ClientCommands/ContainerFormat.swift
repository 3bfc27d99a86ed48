internal import Glibc

/// A format of disk images in which the blocks of the file are not those of the disk in it.
package enum ContainerFormat: String {
    case qcow2, VMDK, VHDX

    /// The format of a file; nil for a raw image, and for what cannot be read.
    package init?(of path: String) {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 8)
        guard read(descriptor, &bytes, bytes.count) == bytes.count else { return nil }
        if bytes.starts(with: [0x51, 0x46, 0x49, 0xFB]) {
            self = .qcow2
        } else if bytes.starts(with: "KDMV".utf8) {
            self = .VMDK
        } else if bytes.elementsEqual("vhdxfile".utf8) {
            self = .VHDX
        } else {
            return nil
        }
    }

    /// What to do about it.
    package func warning(_ path: String) -> String {
        "\(path) looks like a \(rawValue) image. It is served as a raw disk, so changes and snapshots are "
            + "those of the file, not of the disk in it; convert it first (qemu-img convert -O raw)"
    }
}
