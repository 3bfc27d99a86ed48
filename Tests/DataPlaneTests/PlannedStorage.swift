import BlockModel
import CopyOnWrite
import DataPlane
import Glibc
import Storage
import Synchronization

/// A file or block device in memory that refuses, fails half-way and counts, as a test plans it.
final class PlannedMedium: StorageMedium {
    struct State {
        /// What the filesystem says, and what it gives in fact.
        var room: FilesystemRoom?
        var givenByteCount: UInt64 = .max
        /// Bytes reserved, in pages.
        var reserved: Set<UInt64> = []
        /// Bytes that somebody wrote and nobody erased.
        var dirty: Set<UInt64> = []
        /// Offsets whose erasure fails, so often.
        var eraseFailures: [UInt64: Int] = [:]
        var erasures: [ByteRange] = []
        var isClosed = false
        var dirtyAtClose: Int?
    }

    /// The grain in which it keeps account.
    static let page: UInt64 = 1 << 20

    let outlivesUs: Bool
    let isPopulated = false
    let state: Mutex<State>

    init(room: FilesystemRoom? = nil, outlivesUs: Bool = false) {
        self.outlivesUs = outlivesUs
        state = Mutex(State(room: room))
    }

    var access: StorageAccess { .memory(address: 4096) }

    func room() -> FilesystemRoom? { state.withLock { $0.room } }

    /// Allocates page by page; what it got of a range that does not fit stays allocated.
    func allocate(_ range: ByteRange) -> Int32 {
        state.withLock { state in
            for page in pages(of: range) {
                guard state.givenByteCount >= Self.page else { return ENOSPC }
                guard state.reserved.insert(page).inserted else { continue }
                state.givenByteCount -= Self.page
                state.room?.free -= Self.page
            }
            return 0
        }
    }

    func giveBack(_ range: ByteRange, isTail: Bool) {
        state.withLock { state in
            for page in pages(of: range) { Self.free(page, &state) }
        }
    }

    private static func free(_ page: UInt64, _ state: inout State) {
        guard state.reserved.remove(page) != nil else { return }
        state.room?.free += Self.page
        if state.givenByteCount < .max - Self.page { state.givenByteCount += Self.page }
    }

    func erase(_ range: ByteRange) -> Int32 {
        state.withLock { state in
            state.erasures.append(range)
            for page in pages(of: range) where state.eraseFailures[page, default: 0] > 0 {
                state.eraseFailures[page]! -= 1
                return EIO
            }
            for page in pages(of: range) {
                state.dirty.remove(page)
                Self.free(page, &state)
            }
            return 0
        }
    }

    func populate(_ range: ByteRange) {}

    func close() {
        state.withLock { state in
            precondition(!state.isClosed, "a medium is closed once")
            state.isClosed = true
            state.dirtyAtClose = state.dirty.count
        }
    }

    /// A loop stored something in the extent.
    func written(_ byteOffset: UInt64, byteCount: UInt64) {
        state.withLock { state in
            for page in pages(of: ByteRange(offset: byteOffset, length: byteCount)) {
                state.dirty.insert(page)
            }
        }
    }

    private func pages(of range: ByteRange) -> StrideTo<UInt64> {
        stride(from: range.offset, to: range.end, by: Int(Self.page))
    }
}

/// Threads that come when the test says so, or not at all.
final class PlannedJobs: StorageJobs {
    private struct State {
        var isRefusing = false
        var jobs: [@Sendable () -> Void] = []
    }

    private let state = Mutex(State())

    var isRefusing: Bool {
        get { state.withLock { $0.isRefusing } }
        set { state.withLock { $0.isRefusing = newValue } }
    }

    func start(_ work: StorageWork, _ job: @escaping @Sendable () -> Void) -> Bool {
        state.withLock { state in
            guard !state.isRefusing else { return false }
            state.jobs.append(job)
            return true
        }
    }

    /// Runs what was started, and what that starts; how many jobs it was.
    @discardableResult
    func run() -> Int {
        var count = 0
        while true {
            let job = state.withLock { $0.jobs.isEmpty ? nil : $0.jobs.removeFirst() }
            guard let job else { return count }
            job()
            count += 1
        }
    }
}

/// What was answered and told, in order.
final class Heard: Sendable {
    private let lock = Mutex<(answers: [Result<UInt64, Fault>], notices: [String])>(([], []))

    var answers: [Result<UInt64, Fault>] { lock.withLock { $0.answers } }
    var notices: [String] { lock.withLock { $0.notices } }

    func answer(_ answer: Result<UInt64, Fault>) { lock.withLock { $0.answers.append(answer) } }

    func notice(_ notice: StorageSource.Notice) {
        lock.withLock { state in
            switch notice {
            case .lowSpace(let report): state.notices.append("low \(report.bound)")
            case .grown(let byteCount): state.notices.append("grown \(byteCount >> 20)M")
            case .notErased(let byteCount, let fault):
                state.notices.append("not erased \(byteCount >> 20)M errno \(fault.errnoValue)")
            }
        }
    }
}
