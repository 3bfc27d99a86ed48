internal import CLinux
internal import Glibc
internal import Host
package import RingIO
internal import Synchronization

// Thawing what a service left frozen, in a process of its own: a thaw may wait for I/O that the
// service itself has yet to serve.

extension ErrandProcess {
    /// The first argument of the errand that thaws.
    package static let thawCommand = "thaw"

    /// Thaws what is listed in a process of its own, and returns the mount points that were thawed.
    package static func thaw(listedIn path: String) async -> [String] {
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
    package static func thaw(listedIn path: String, seconds: UInt64) -> [String]? {
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
