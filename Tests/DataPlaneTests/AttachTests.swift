import BlockModel
import DataPlane
import Glibc
import Origins
import RingIO
import Testing

@Suite struct `Attaching an origin` {
    private func failure(
        path: String, isReadOnly: Bool = false, sectorBytes: UInt32? = nil
    ) async -> AttachError? {
        do {
            let harness = try await DeviceHarness(
                path: path, isReadOnly: isReadOnly, sectorBytes: sectorBytes)
            _ = await harness.close()
            return nil
        } catch { return error as? AttachError }
    }

    @Test func `refuses what does not exist, folders and empty files`() async {
        let folder = Folder()
        #expect(await failure(path: "\(folder.path)/nothing")?.kind == .notFound)
        #expect(await failure(path: folder.path)?.kind == .unsuitable)
        #expect(await failure(path: folder.file(size: 0))?.kind == .unsuitable)
        #expect(await failure(path: "/dev/null")?.kind == .unsuitable)
    }

    @Test func `refuses a size that is no multiple of the sector size and says which would do`()
        async
    {
        let folder = Folder()
        let odd = await failure(path: folder.file(size: 1000))
        #expect(odd?.kind == .unsuitable)
        #expect(odd?.message.contains("1024") == true)
        let path = folder.file("sectors", size: 4096 + 512)
        #expect(await failure(path: path) == nil)
        #expect(await failure(path: path, sectorBytes: 4096)?.kind == .unsuitable)
        #expect(await failure(path: path, sectorBytes: 1024)?.kind == .unsuitable)
    }

    @Test func `refuses a file that is attached already`() async throws {
        let folder = Folder()
        let path = folder.file(size: 8192)
        let harness = try await DeviceHarness(path: path)
        let again = await failure(path: path)
        #expect(again?.kind == .busy)
        #expect(again?.message.contains("attached already") == true)
        #expect(await harness.close() == nil)
        #expect(await failure(path: path) == nil)
    }

    @Test func `refuses a file that another process has locked, and names the process`() async {
        let folder = Folder()
        let path = folder.file(size: 8192)
        let descriptor = open(path, O_RDWR)
        defer { close(descriptor) }
        #expect(flock(descriptor, LOCK_EX) == 0)
        #expect(await failure(path: path)?.kind == .busy)
        #expect(flock(descriptor, LOCK_UN) == 0)
        #expect(await failure(path: path) == nil)
    }

    @Test func `reaches a file on disk directly and one in memory inline`() async throws {
        let disk = Folder()
        let onDisk = try await DeviceHarness(path: disk.file(size: 8192))
        #expect(onDisk.device.facts.accessMode == .direct)
        _ = await onDisk.close()
        let memory = Folder(under: "/dev/shm")
        let inMemory = try await DeviceHarness(path: memory.file(size: 8192))
        #expect(inMemory.device.facts.accessMode == .inline)
        #expect(inMemory.device.facts.sectorBytes == 512)
        _ = await inMemory.close()
    }
}
