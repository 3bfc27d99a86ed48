import Glibc
import Host
import Testing

/// A directory that goes with the test.
private final class Place {
    let path: String

    init() {
        var name = Array("/tmp/stillpoint-host-XXXXXX".utf8CString)
        guard mkdtemp(&name) != nil else { preconditionFailure("no directory in /tmp") }
        path = name.withUnsafeBufferPointer { String(cString: $0.baseAddress!) }
    }

    deinit {
        for name in SystemFile.names(in: path) { unlink("\(path)/\(name)") }
        rmdir(path)
    }
}

@Suite struct `A file that is replaced` {
    @Test func `has the new contents and leaves nothing beside it`() throws {
        let place = Place()
        let file = place.path + "/state"
        try DurableFile.replace(file, with: Array("one".utf8))
        try DurableFile.replace(file, with: Array("two".utf8))
        #expect(SystemFile.read(file) == "two")
        #expect(SystemFile.names(in: place.path) == ["state"])
        var facts = stat()
        #expect(stat(file, &facts) == 0)
        #expect(facts.st_mode & 0o777 == 0o600)
    }

    @Test func `keeps the old contents when the new ones cannot be written`() throws {
        let place = Place()
        let file = place.path + "/state"
        try DurableFile.replace(file, with: Array("one".utf8))
        let error = #expect(throws: HostError.self) {
            try DurableFile.replace(file) { descriptor throws(HostError) in
                try DurableFile.write(Array("half".utf8), to: descriptor, file)
                throw HostError(file, ENOSPC)
            }
        }
        #expect(error?.errnoValue == ENOSPC)
        #expect(SystemFile.read(file) == "one")
        #expect(SystemFile.names(in: place.path) == ["state"])
    }

    @Test func `names what failed`() {
        let error = #expect(throws: HostError.self) {
            try DurableFile.replace("/nowhere/at/all/state", with: [])
        }
        #expect(error?.errnoValue == ENOENT)
        #expect(error?.description == "/nowhere/at/all/state.new: No such file or directory")
    }

    @Test(arguments: [("/a/b", "/a"), ("/a", "/"), ("a/b", "a"), ("a", ".")])
    func `is in the directory before its last slash`(path: String, directory: String) {
        #expect(DurableFile.directory(of: path) == directory)
    }

    @Test func `is listed by the path and by the descriptor of its directory`() throws {
        let place = Place()
        for name in ["a", "b c"] { try DurableFile.replace("\(place.path)/\(name)", with: []) }
        let descriptor = open(place.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        defer { close(descriptor) }
        #expect(SystemFile.names(in: place.path).sorted() == ["a", "b c"])
        // Twice: the descriptor's own position is not used.
        for _ in 0..<2 {
            #expect(SystemFile.names(inOpen: descriptor)?.sorted() == ["a", "b c"])
        }
        #expect(SystemFile.names(inOpen: -1) == nil)
    }
}
