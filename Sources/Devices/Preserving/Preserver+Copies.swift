internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import SnapshotCore

// Old data of the origin on its way to memory.

extension Preserver {
    /// Reads old data into the buffers of a copy.
    func readForCopy(_ copy: CopyIndex, offset: UInt64, length: UInt64) {
        let buffers = engine.buffers(of: copy)
        // A copy costs about three times its read: it is looked at, and stored.
        let work = Int(length) * 3
        let result: Int32?
        if buffers.count == 1, length == blockByteCount {
            // The common case, an aligned 4 KiB write, without the vectors.
            result = access.read(
                self, tag: PreserverStep.copyRead.rawValue, token: copy.rawValue,
                into: preservation.address(of: buffers[0]), byteCount: Int(length),
                offset: offset, work: work)
        } else {
            let vectors = copyVectors + Int(copy.rawValue) * Self.vectorsPerCopy
            var rest = Int(length)
            for (position, buffer) in buffers.enumerated() {
                let byteCount = min(rest, Int(blockByteCount))
                let address = preservation.address(of: buffer)
                if byteCount < Int(blockByteCount) { memset(address, 0, Int(blockByteCount)) }
                vectors[position] = iovec(iov_base: address, iov_len: byteCount)
                rest -= byteCount
            }
            result = access.read(
                self, tag: PreserverStep.copyRead.rawValue, token: copy.rawValue,
                vectors: vectors, count: buffers.count, offset: offset, work: work)
        }
        if let result = begun(result) { copyReadCompleted(copy, result) }
    }

    func copyReadCompleted(_ copy: CopyIndex, _ result: Int32) {
        withChecks(engine.buffers(of: copy), isValid: result > 0) { zeroMask, checksums in
            // Interrupted is as good as nothing read: the engine asks again.
            let isAgain = result == -EINTR || result == -EAGAIN
            if result < 0, !isAgain { device.originFailed(Fault(errnoValue: -result)) }
            engine.copyReadFinished(
                copy, byteCount: UInt64(max(result, 0)),
                fault: result < 0 && !isAgain ? Fault(errnoValue: -result) : nil,
                zeroMask: zeroMask, checksums: checksums)
        }
    }

    /// Looks which of at most 16 blocks are zero and computes the checksums of the others.
    private func withChecks(
        _ buffers: UnsafeBufferPointer<BufferIndex>, isValid: Bool,
        _ body: (UInt16, UnsafePointer<UInt32>) -> Void
    ) {
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 16) { checksums in
            var zeroMask: UInt16 = 0
            for (position, buffer) in buffers.enumerated() {
                checksums[position] = 0
                guard isValid else { continue }
                let address = preservation.address(of: buffer)
                if cl_is_zero(address, Int(blockByteCount)) {
                    zeroMask |= 1 << UInt16(position)
                } else {
                    checksums[position] = cl_crc32c(address, Int(blockByteCount))
                }
            }
            guard let base = checksums.baseAddress else {
                preconditionFailure("sixteen checksums have an address")
            }
            body(zeroMask, UnsafePointer(base))
        }
    }
}
