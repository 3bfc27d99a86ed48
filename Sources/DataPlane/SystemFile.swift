internal import Glibc

/// Small files of /proc and /sys.
enum SystemFile {
    /// The whole file; nil when it cannot be read or is larger than 4 MiB.
    static func read(_ path: String) -> String? {
        readBytes(path, byteCountMax: 4 << 20).map { String(decoding: $0, as: UTF8.self) }
    }

    /// The whole file; nil when it cannot be read or is larger than `byteCountMax`.
    static func readBytes(_ path: String, byteCountMax: Int) -> [UInt8]? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes: [UInt8] = []
        var piece = [UInt8](repeating: 0, count: 65536)
        while bytes.count <= byteCountMax {
            let count = Glibc.read(descriptor, &piece, piece.count)
            guard count >= 0 else { return nil }
            if count == 0 { return bytes }
            bytes.append(contentsOf: piece[0..<count])
        }
        return nil
    }

    /// Names in a folder, without `.` and `..`; empty when it cannot be read.
    static func names(in folder: String) -> [String] {
        guard let handle = opendir(folder) else { return [] }
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }
}
