internal import CLinux
internal import Glibc

/// Mounts and loop devices that a killed service left behind.
package enum BlockLeftovers {
    /// Takes away everything under `directory`, an absolute path without symbolic links in which
    /// no living service mounts. Devices that somebody still holds go with their last user. Returns
    /// what was found, one sentence each. Blocks.
    package static func remove(under directory: String) -> [String] {
        var found: [String] = []
        for name in names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let file = firstLine("/sys/block/\(name)/loop/backing_file"),
                file.hasPrefix(directory + "/")
            else { continue }
            LoopNode.abandon("/dev/" + name)
            found.append("loop device /dev/\(name) over \(file) was left behind; it is taken away")
        }
        for place in mountPlaces() where place.hasPrefix(directory + "/") {
            FuseMount.unmount(place)
            found.append("a mount at \(place) was left behind; it is taken away")
        }
        for name in names(in: directory) { rmdir(directory + "/" + name) }
        return found
    }

    private static func mountPlaces() -> [String] {
        guard let table = fopen("/proc/self/mountinfo", "re") else { return [] }
        defer { fclose(table) }
        var places: [String] = []
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        while getline(&line, &capacity, table) > 0 {
            guard let text = line else { break }
            // mountinfo: id parent major:minor root mountpoint ...
            let fields = String(cString: text).split(separator: " ")
            if fields.count > 4 { places.append(unescaped(fields[4])) }
        }
        free(line)
        return places
    }

    /// Blanks and the like stand as `\ooo` in mountinfo.
    static func unescaped(_ text: Substring) -> String {
        var bytes: [UInt8] = []
        var rest = Array(text.utf8)[...]
        while let byte = rest.popFirst() {
            let digits = rest.prefix(3)
            guard byte == UInt8(ascii: "\\"), digits.count == 3,
                digits.allSatisfy({ (UInt8(ascii: "0")...UInt8(ascii: "7")).contains($0) })
            else {
                bytes.append(byte)
                continue
            }
            bytes.append(digits.reduce(0) { $0 &* 8 &+ ($1 - UInt8(ascii: "0")) })
            rest = rest.dropFirst(3)
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    private static func names(in folder: String) -> [String] {
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

    private static func firstLine(_ path: String) -> String? {
        guard let file = fopen(path, "re") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 8192)
        guard fgets(&line, Int32(line.count), file) != nil else { return nil }
        let bytes = line.prefix { $0 != 0 && $0 != 10 }
        return String(decoding: bytes.map(UInt8.init(bitPattern:)), as: UTF8.self)
    }
}
