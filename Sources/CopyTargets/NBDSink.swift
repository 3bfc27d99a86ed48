package import BlockModel
package import CopyPlanning
internal import Glibc
package import NBDAccess
internal import Synchronization

// An export that is written to over one connection, many requests under way.
//
// Invariants
// - Used by one thread at a time: each of the threads that share a work has a sink of its own.
// - When `drain` has returned every write was acknowledged.
// - A range counts as done when all that was sent until then was acknowledged: what is recorded as
//   done is not copied again after a failure.

/// Writes to an export; see the head of this file.
package final class NBDSink: CopySink, @unchecked Sendable {
    // SAFETY: used by the one thread that feeds it.
    private let export: NBDExport
    private let name: String
    private var isUnderWay: Set<UInt64> = []
    private var nextCookie: UInt64 = 0
    /// Ranges that were given, and the last request that was sent for each; in their order.
    private var given: [(range: ByteRange, cookie: UInt64, work: CopyWork)] = []

    private static let underWayMax = 16
    /// Most bytes that are zeroed by one request, and that are written by one.
    private static let zeroByteCountMax: UInt64 = 32 << 20
    private static let writeByteCountMax = 1 << 20
    private static let zeroes = [UInt8](repeating: 0, count: 256 << 10)

    /// Connects to an export that can be written to. `name`: what the user calls it.
    package convenience init(
        _ address: NBDServerAddress, export: String, name: String? = nil
    ) throws(CopyError) {
        let name = name ?? export
        do throws(NBDAccessError) {
            self.init(try NBDExport(address, export: export, isForWriting: true), name)
        } catch {
            throw CopyError(.failed, "\(name) cannot be opened over NBD (\(error))")
        }
        guard !self.export.isReadOnly else {
            throw CopyError(.busy, "\(name) is read-only over NBD; it cannot be written")
        }
    }

    /// Continues with a connection.
    init(_ export: NBDExport, _ name: String) {
        self.export = export
        self.name = name
    }

    /// Bytes of the export.
    package var size: UInt64 { export.size }

    private func failure(_ error: NBDAccessError) -> CopyError {
        if error == .failed(number: UInt32(ENOSPC)) {
            return CopyError(
                .failed,
                "target \(name) has no room left; make room and run the same command again: it "
                    + "finishes the copy")
        }
        return writing(error)
    }

    private func writing(_ error: NBDAccessError) -> CopyError {
        CopyError(
            .failed, "\(name) cannot be written (\(error)); run the same command again to continue")
    }

    /// Waits until no more than `count` requests are under way.
    private func wait(until count: Int) throws(CopyError) {
        do throws(NBDAccessError) {
            while isUnderWay.count > count {
                let piece = try export.next { _, _, _ in nil }
                guard isUnderWay.contains(piece.cookie) else {
                    throw .notUnderstood("a reply to nothing")
                }
                if let number = piece.errorNumber { throw .failed(number: number) }
                if piece.isLast {
                    isUnderWay.remove(piece.cookie)
                    reportProgress()
                }
            }
        } catch { throw failure(error) }
    }

    package func finished(_ range: ByteRange, of work: CopyWork) {
        given.append((range, nextCookie, work))
        reportProgress()
    }

    /// Tells of the ranges before the first request that is under way.
    private func reportProgress() {
        let first = isUnderWay.min() ?? .max
        let count = given.firstIndex { $0.cookie >= first } ?? given.count
        for one in given[..<count] { one.work.finished(one.range) }
        given.removeFirst(count)
    }

    private func cookie() throws(CopyError) -> UInt64 {
        try wait(until: Self.underWayMax - 1)
        nextCookie += 1
        isUnderWay.insert(nextCookie)
        return nextCookie
    }

    package func write(
        _ bytes: UnsafeRawPointer, _ byteCount: Int, at offset: UInt64
    ) throws(CopyError) {
        var done = 0
        while done < byteCount {
            let count = min(byteCount - done, Self.writeByteCountMax)
            let cookie = try cookie()
            do throws(NBDAccessError) {
                try export.requestWrite(
                    cookie: cookie, offset: offset + UInt64(done),
                    UnsafeRawBufferPointer(start: bytes + done, count: count))
            } catch { throw failure(error) }
            done += count
        }
    }

    package func zero(_ range: ByteRange) throws(CopyError) {
        var offset = range.offset
        while offset < range.end {
            guard export.canZero else {
                let count = min(range.end - offset, UInt64(Self.zeroes.count))
                let outcome = Self.zeroes.withUnsafeBytes { bytes -> Result<Void, CopyError> in
                    do throws(CopyError) {
                        return .success(
                            try write(
                                bytes.baseAddress.unsafelyUnwrapped, Int(count), at: offset))
                    } catch { return .failure(error) }
                }
                try outcome.get()
                offset += count
                continue
            }
            let count = min(range.end - offset, Self.zeroByteCountMax)
            let cookie = try cookie()
            do throws(NBDAccessError) {
                try export.requestZero(cookie: cookie, offset: offset, length: count)
            } catch { throw failure(error) }
            offset += count
        }
    }

    package func drain() throws(CopyError) { try wait(until: 0) }

    /// Everything that was acknowledged is on stable storage when it returns.
    package func flush() throws(CopyError) {
        guard export.canFlush else { return }
        export.requestFlush(cookie: try cookie())
        try drain()
    }
}
