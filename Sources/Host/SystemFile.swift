internal import CLinux
internal import Glibc

/// Small files and folders of /proc, /sys and /run, read whole. All calls block.
package enum SystemFile {
    /// The whole file; nil when it cannot be read or is larger than 4 MiB.
    package static func read(_ path: String) -> String? {
        readBytes(path, byteCountMax: 4 << 20).map { String(decoding: $0, as: UTF8.self) }
    }

    /// The whole file; nil when it cannot be read or is larger than `byteCountMax`.
    package static func readBytes(_ path: String, byteCountMax: Int) -> [UInt8]? {
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

    /// The first line, at most 4 KiB of it, without its end; nil when the file cannot be read.
    package static func line(of path: String) -> String? {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var bytes = [UInt8](repeating: 0, count: 4096)
        let count = Glibc.read(descriptor, &bytes, bytes.count)
        guard count >= 0 else { return nil }
        return String(decoding: bytes[..<count].prefix { $0 != 10 }, as: UTF8.self)
    }

    /// The lines without their ends; none when the file cannot be read or is larger than 64 MiB.
    package static func lines(of path: String) -> [String] {
        let bytes = readBytes(path, byteCountMax: 64 << 20) ?? []
        return bytes.split(separator: 10).map { String(decoding: $0, as: UTF8.self) }
    }

    /// The decimal number that the first line consists of; nil when it does not.
    package static func number(in path: String) -> UInt64? {
        line(of: path).flatMap { UInt64($0) }
    }

    /// Whether something has this name, wherever a symbolic link of the name leads.
    package static func exists(_ path: String) -> Bool { access(path, F_OK) == 0 }

    /// The names in a folder, without `.` and `..`; empty when it cannot be read.
    package static func names(in folder: String) -> [String] {
        guard let handle = opendir(folder) else { return [] }
        return names(of: handle)
    }

    /// The names in the folder that is open as `descriptor`; nil with errno when it cannot be read.
    package static func names(inOpen descriptor: Int32) -> [String]? {
        let own = openat(descriptor, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard own >= 0 else { return nil }
        // A stream closes its descriptor.
        guard let handle = fdopendir(own) else {
            let reason = errno
            close(own)
            errno = reason
            return nil
        }
        return names(of: handle)
    }

    private static func names(of handle: OpaquePointer) -> [String] {
        defer { closedir(handle) }
        var names: [String] = []
        while let entry = readdir(handle) {
            let name = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
                // SAFETY: the kernel ends a name with a zero within the 256 bytes of its field.
                pointer.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
            }
            if name != ".", name != ".." { names.append(name) }
        }
        return names
    }

    /// The text of a symbolic link; nil when the path is not one.
    package static func link(_ path: String) -> String? {
        var name = [CChar](repeating: 0, count: Int(PATH_MAX))
        let count = readlink(path, &name, name.count)
        guard count > 0 else { return nil }
        return String(decoding: name[..<count].map(UInt8.init(bitPattern:)), as: UTF8.self)
    }

    /// The path without symbolic links; nil when it leads nowhere.
    package static func resolved(_ path: String) -> String? {
        guard let found = realpath(path, nil) else { return nil }
        defer { free(found) }
        return String(cString: found)
    }

    /// Opens the socket at `path` without connecting to it, so that the calling process can name it
    /// shorter, as `/proc/self/fd/N`. Returns the descriptor, or the errno value negated.
    package static func openSocketPlace(_ path: String) -> Int32 {
        let descriptor = open(path, cl_o_path | O_CLOEXEC)
        return descriptor >= 0 ? descriptor : -errno
    }

    /// The C library's words for an error number.
    package static func errorText(_ errnoValue: Int32) -> String {
        String(cString: strerror(errnoValue))
    }
}
