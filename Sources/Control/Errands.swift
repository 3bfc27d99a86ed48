internal import Host
internal import CLinux
internal import DataPlane
internal import ExportBlock
internal import Glibc
internal import RingIO
internal import Synchronization

// The errands of the service: what may wait for its own block devices. See `ErrandProcess`.

/// The command that thaws.
private let thawCommand = "thaw"

/// Runs an errand in its own process, given its arguments; returns the exit status.
package func runErrand(_ words: [String]) -> Int32 {
    ErrandProcess.begin()
    switch (words.first, words.count) {
    case (BlockErrand.command, 2...):
        guard let errand = BlockErrand(Array(words.dropFirst())) else { return 2 }
        ErrandProcess.answer(errand.perform())
    case (FreezeErrand.command, 2...): FreezeErrand.run(Array(words.dropFirst()))
    case (thawCommand, 2):
        ErrandProcess.answer(["done"] + FrozenFilesystems.thaw(listedIn: words[1]))
    case (_, _): return 2
    }
    return 0
}

extension ErrandProcess {
    /// Thaws what is listed in a process of its own, and returns the mount points that were thawed.
    static func thaw(listedIn path: String) async -> [String] {
        guard access(path, F_OK) == 0 else { return [] }
        return await withCheckedContinuation { continuation in
            // On a thread of its own: it may take until block devices are served again.
            do throws(HostError) {
                try ServiceThread.start("thaw") {
                    continuation.resume(returning: thawed(run([thawCommand, path])))
                }
            } catch { continuation.resume(returning: []) }
        }
    }

    /// The same for a caller that blocks; nil when it has not come to its end in time.
    static func thaw(listedIn path: String, seconds: UInt64) -> [String]? {
        guard access(path, F_OK) == 0 else { return [] }
        let found = Mutex<[String]?>(nil)
        let ended = Semaphore()
        do throws(HostError) {
            try ServiceThread.start("thaw") {
                let fields = thawed(run([thawCommand, path]))
                found.withLock { $0 = fields }
                ended.signal()
            }
        } catch { return FrozenFilesystems.thaw(listedIn: path) }
        guard ended.wait(until: cl_now_nanoseconds() + seconds * 1_000_000_000) else { return nil }
        return found.withLock { $0 }
    }

    private static func thawed(_ answer: Result<[String], RingError>) -> [String] {
        switch answer {
        case .success(let fields): Array(fields.dropFirst())
        // What is still frozen is listed, and thawed by the next one who thaws.
        case .failure: []
        }
    }
}
