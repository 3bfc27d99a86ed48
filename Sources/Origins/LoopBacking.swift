internal import CLinux
internal import Glibc
internal import Host
internal import RingIO
internal import Synchronization

// Tells whether a file backs a loop device: its users would write behind our back, or we behind
// theirs.
//
// The kernel answers by asking the filesystem of the backing file, which hangs where that
// filesystem does (a FUSE server that has stopped). Nobody else's filesystem may hold up an attach,
// so every loop device is asked on a thread of its own, and one that does not answer in time is
// passed over: the filesystem of the origin has just answered, so that is another one.
//
// Invariants
// - At most `askerCountMax` threads wait for the answer of a loop device.

/// Which loop devices stand on a file.
enum LoopBacking {
    /// Longest wait for the answer of one loop device, in nanoseconds.
    private static let waitNanoseconds: UInt64 = 2_000_000_000

    /// More questions to one loop device would wait forever like those before.
    private static let askerCountMax = 4

    /// Questions under way, by loop device.
    private static let asked = Mutex<[String: Int]>([:])

    /// Throws when a loop device stands on the file with this device number and inode. Blocks.
    static func refuseIfBacking(
        path: String, device: UInt64, inode: UInt64
    ) throws(AttachError) {
        guard let name = loopDevice(over: path, device: device, inode: inode) else { return }
        throw AttachError(
            .busy,
            "origin \(path) backs the loop device \(name); attach that device instead, "
                + "or detach it first (losetup -d \(name))")
    }

    /// The path of a loop device that stands on the file; nil when none does. Blocks.
    static func loopDevice(over path: String, device: UInt64, inode: UInt64) -> String? {
        let served = servedDirectories()
        for name in SystemFile.names(in: "/sys/block") where name.hasPrefix("loop") {
            guard let backing = SystemFile.read("/sys/block/\(name)/loop/backing_file") else {
                continue
            }
            // Asking about one that a service like this serves means asking that service, which
            // may be this one; an origin is not one of their files.
            guard !served.contains(where: backing.hasPrefix) else { continue }
            let isBacking =
                switch ask(name) {
                case .file(let itsDevice, let itsInode): itsDevice == device && itsInode == inode
                // Without the right to open it, the name that the kernel shows is used.
                case .unknown: backing.trimmingNewline == path
                }
            if isBacking { return "/dev/\(name)" }
        }
        return nil
    }

    /// Where services like this one have mounted the files under their block devices.
    private static func servedDirectories() -> [String] {
        Mounts.all().filter { $0.type == "fuse.stillpoint" }.map { $0.name + "/" }
    }

    private enum Answer: Sendable {
        case file(device: UInt64, inode: UInt64)
        case unknown
    }

    /// A question and its answer, shared with the thread that asks.
    private final class Question: Sendable {
        let name: String
        let answer = Mutex(Answer.unknown)
        let answered = Semaphore()

        init(_ name: String) { self.name = name }

        func ask() {
            let descriptor = open("/dev/\(name)", O_RDONLY | O_CLOEXEC | O_NONBLOCK)
            var device: UInt64 = 0
            var inode: UInt64 = 0
            if descriptor >= 0 {
                if cl_loop_backing(descriptor, &device, &inode) == 0 {
                    answer.withLock { $0 = .file(device: device, inode: inode) }
                }
                close(descriptor)
            }
            LoopBacking.questionEnded(name)
            answered.signal()
        }
    }

    private static func questionEnded(_ name: String) {
        asked.withLock { asked in
            guard let count = asked[name] else {
                preconditionFailure("a question that ends was counted")
            }
            asked[name] = count == 1 ? nil : count - 1
        }
    }

    private static func ask(_ name: String) -> Answer {
        let mayAsk = asked.withLock { asked in
            guard asked[name, default: 0] < askerCountMax else { return false }
            asked[name, default: 0] += 1
            return true
        }
        guard mayAsk else { return .unknown }
        let question = Question(name)
        do throws(HostError) {
            try ServiceThread.start("loop-status") { question.ask() }
        } catch {
            questionEnded(name)
            return .unknown
        }
        guard question.answered.wait(until: cl_now_nanoseconds() + waitNanoseconds) else {
            return .unknown
        }
        return question.answer.withLock { $0 }
    }
}

extension String {
    fileprivate var trimmingNewline: Substring {
        hasSuffix("\n") ? dropLast() : Substring(self)
    }
}
