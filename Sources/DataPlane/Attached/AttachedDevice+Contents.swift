internal import BlockModel
internal import CLinux
internal import Devices
internal import RingIO
internal import SnapshotCore

// All that a full backup has to read: the device, or one of its images, less what is known to read
// as zeroes. Asked for as an export asks, by block status requests.

extension AttachedDevice {
    /// Bytes that one status request of an image is about: bounds its time on the loop. What an
    /// origin is asked takes no time there.
    private static let imageBytesPerRequest: UInt64 = 16 << 20
    private static let originBytesPerRequest: UInt64 = 1 << 40
    /// Longest time a page takes to put together: then it is answered as far as it goes.
    private static let pageNanosecondsMax: UInt64 = 2_000_000_000

    /// A page of the whole device less its holes.
    func contents(_ query: ChangesQuery) async -> Result<ChangesPage, ChangesRefusal> {
        let (device, until) = (device, query.until)
        let frame = await loop.mailbox.run { loop in
            device.get(on: loop).changesFrame(query, until: until?.get(on: loop))
        }
        guard let frame else { return .failure(.busy) }
        let slice: ChangesSlice
        switch frame {
        case .success(let found): slice = found
        case .failure(let refusal): return .failure(refusal)
        }
        guard query.expected.isMet(by: slice) else { return .failure(.changed) }
        var page = PageCollector(slice, query)
        var position = query.offset
        let deadline = cl_now_nanoseconds() + Self.pageNanosecondsMax
        while position < slice.end, !page.isFull {
            if cl_now_nanoseconds() > deadline, position > query.offset {
                page.endedEarly(at: position)
                break
            }
            let step = until == nil ? Self.originBytesPerRequest : Self.imageBytesPerRequest
            let range = ByteRange(offset: position, length: min(slice.end - position, step))
            switch await status(of: range, until: until) {
            case .success(let extents):
                guard !extents.isEmpty else { return .failure(.failed(.inputOutput)) }
                for extent in extents {
                    if extent.flags & AllocationFlags.zero == 0 {
                        page.add([ByteRange(offset: position, length: extent.length)])
                    }
                    position += extent.length
                }
            case .failure(let refusal): return .failure(refusal)
            }
        }
        return .success(page.finished())
    }

    private func status(
        of range: ByteRange, until: LoopConfined<SnapshotPart>?
    ) async -> Result<[StatusExtent], ChangesRefusal> {
        let (device, mailbox) = (device, loop.mailbox)
        return await withCheckedContinuation { continuation in
            let accepted = mailbox.postWhenRoom { loop in
                let device = device.get(on: loop)
                let part = until?.get(on: loop)
                if let part, part.standing != .held {
                    let isCorrupted = part.standing == .corrupted
                    return continuation.resume(
                        returning: .failure(isCorrupted ? .corrupted : .notHeld))
                }
                let target = part?.image ?? device
                // It shrank since the question began.
                guard range.end <= target.size else {
                    return continuation.resume(returning: .failure(.changed))
                }
                StatusReader(device.requests) { outcome in
                    // Lost or destroyed while it was asked.
                    let isCorrupted = part?.standing == .corrupted
                    continuation.resume(returning: isCorrupted ? .failure(.corrupted) : outcome)
                }.read(range, of: target)
            }
            if !accepted { continuation.resume(returning: .failure(.busy)) }
        }
    }
}

/// Asks a target on its loop how a range lies, once.
///
/// Invariants
/// - From `read` until the answer was delivered the reader is kept by a reference of its own. It
///   ends with the answer, not before: the extents are the reader's memory.
private final class StatusReader: RequestOwner {
    private static let extentCountMax = 2048

    private let requests: RequestPool
    private let extents: UnsafeMutablePointer<StatusExtent>
    private var finish: ((Result<[StatusExtent], ChangesRefusal>) -> Void)?

    init(
        _ requests: RequestPool,
        finish: @escaping (Result<[StatusExtent], ChangesRefusal>) -> Void
    ) {
        self.requests = requests
        self.finish = finish
        extents = .allocate(capacity: Self.extentCountMax)
        super.init()
    }

    deinit { extents.deallocate() }

    func read(_ range: ByteRange, of target: BlockTarget) {
        // The request keeps its owner unretained: this keeps it until the answer.
        let owner = Unmanaged.passRetained(self as RequestOwner)
        var request = BlockRequest(
            operation: .blockStatus, offset: range.offset, length: range.length, owner: owner)
        request.buffer = UnsafeMutableRawPointer(extents)
        request.bufferByteCount = Self.extentCountMax * MemoryLayout<StatusExtent>.stride
        guard let index = requests.lease(request, heldCount: 0) else {
            owner.release()
            finish?(.failure(.busy))
            return
        }
        target.submit(index)
    }

    override func requestFinished(_ index: RequestIndex) {
        let request = requests[index]
        requests.release(index)
        let reader = request.owner.takeRetainedValue()
        withExtendedLifetime(reader) {
            let finish = finish
            self.finish = nil
            if let fault = request.fault {
                finish?(.failure(fault == .shutdown ? .notHeld : .failed(fault)))
            } else {
                let count = request.resultByteCount / MemoryLayout<StatusExtent>.stride
                finish?(.success(Array(UnsafeBufferPointer(start: extents, count: count))))
            }
        }
    }
}
