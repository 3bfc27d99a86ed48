internal import BlockModel
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import RingIO
internal import SnapshotCore
internal import Storage

// Preserved blocks and overlays on their way to difference storage.

extension Preserver {
    /// Writes the buffers of a batch one behind the other.
    func writeStorage(
        _ batch: BatchIndex, _ index: SourceIndex, byteOffset: UInt64, blockCount: Int
    ) {
        let buffers = engine.buffers(of: batch)
        precondition(buffers.count == blockCount, "a batch has a buffer for each block")
        let byteCount = blockCount * Int(blockByteCount)
        let access = device.source(index).access
        if case .memory(let address) = access {
            guard var place = UnsafeMutableRawPointer(bitPattern: address + UInt(byteOffset)) else {
                preconditionFailure("memory storage has an address")
            }
            for buffer in buffers {
                place.copyMemory(
                    from: preservation.address(of: buffer), byteCount: Int(blockByteCount))
                place += Int(blockByteCount)
            }
            return storageWriteCompleted(batch, Int32(byteCount))
        }
        let vectors = batchVectors + Int(batch.rawValue) * Self.vectorsPerBatch
        for (position, buffer) in buffers.enumerated() {
            vectors[position] = iovec(
                iov_base: preservation.address(of: buffer), iov_len: Int(blockByteCount))
        }
        switch access {
        case .inline(let descriptor):
            let result = pwritev(descriptor, vectors, Int32(blockCount), off_t(byteOffset))
            storageWriteCompleted(batch, result < 0 ? -errno : Int32(result))
        case .ring(let descriptor):
            _ = begun(nil)
            loop.write(
                self, tag: PreserverStep.storageWrite.rawValue, token: batch.rawValue,
                descriptor: descriptor, vectors: vectors, count: blockCount, offset: byteOffset)
        case .memory: preconditionFailure("memory storage was handled above")
        }
    }

    func storageWriteCompleted(_ batch: BatchIndex, _ result: Int32) {
        let isAgain = result == -EINTR || result == -EAGAIN
        engine.storageWriteFinished(
            batch, byteCount: UInt64(max(result, 0)),
            fault: result < 0 && !isAgain ? Fault(errnoValue: -result) : nil)
    }
}
