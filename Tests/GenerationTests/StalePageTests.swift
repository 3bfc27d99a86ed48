import Foundation
import Generations
import Glibc
import Synchronization
import TestSupport
import Testing

@Suite(.enabled(if: canFreeze, "needs filesystems that can be frozen"))
struct `A page of a change map that is emptied` {
    /// Waits until a thread of this process waits for its disk.
    private func awaitBlocked(_ thread: String) throws {
        let end = monotonicSeconds() + 60
        while monotonicSeconds() < end {
            let line = try String(contentsOfFile: "/proc/\(thread)/stat", encoding: .utf8)
            // The state follows the name, which is in parentheses.
            if line.split(separator: ")").last?.hasPrefix(" D") == true { return }
            usleep(1000)
        }
        throw TestFailure("thread \(thread) does not wait for its disk")
    }

    @Test func `does not hold up a loop that begins a generation, however slow the disk is`() throws
    {
        let disk = try MountedDisk()
        let descriptor = open(disk.path("map"), O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        try #require(descriptor >= 0)
        #expect(ftruncate(descriptor, 4 << 20) == 0)
        let file = RunningMapFile(path: nil, descriptor: descriptor)
        [UInt64](arrayLiteral: 1).withUnsafeBufferPointer { file.becomeStale($0) }
        try Command.check("fsfreeze", ["--freeze", disk.path])
        let thread = Mutex("")
        let begun = DispatchSemaphore(value: 0)
        let emptying = Background {
            let name = try FileManager.default.destinationOfSymbolicLink(
                atPath: "/proc/thread-self")
            thread.withLock { $0 = name }
            begun.signal()
            return file.emptyIfStale(page: 0)
        }
        try #require(begun.wait(timeout: .now() + 60) == .success)
        try awaitBlocked(thread.withLock { $0 })
        let loop = Background {
            [UInt64](arrayLiteral: 2).withUnsafeBufferPointer { file.becomeStale($0) }
            return true
        }
        #expect(try loop.value(within: 60))
        try Command.check("fsfreeze", ["--unfreeze", disk.path])
        #expect(try emptying.value(within: 60))
        #expect(file.emptyIfStale(page: 1))
    }
}
