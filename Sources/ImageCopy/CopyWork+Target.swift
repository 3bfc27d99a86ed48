internal import BlockModel
internal import CLinux
internal import CopyPlanning

// How bytes that were read reach the target: blocks that are all zero become holes.

extension CopyWork {
    /// Writes a range whose bytes are there.
    func store(
        _ range: ByteRange, _ bytes: UnsafeRawPointer, into target: any CopySink, isFresh: Bool
    ) throws(CopyError) {
        wait(for: range.length)
        var start = 0
        let byteCount = Int(range.length)
        while start < byteCount {
            let isZero = isZeroBlock(bytes, start, byteCount)
            var end = start + blockLength(start, byteCount)
            while end < byteCount, isZeroBlock(bytes, end, byteCount) == isZero {
                end += blockLength(end, byteCount)
            }
            let part = ByteRange(
                offset: range.offset + UInt64(start), length: UInt64(end - start))
            if isZero {
                try zero(part, of: target, isFresh: isFresh)
            } else {
                try target.write(bytes + start, end - start, at: part.offset)
                writtenByteCount.add(part.length, ordering: .relaxed)
            }
            start = end
        }
    }

    /// Makes a range of the target read as zero; a fresh one does so already.
    func zero(
        _ range: ByteRange, of target: any CopySink, isFresh: Bool
    ) throws(CopyError) {
        if !isFresh { try target.zero(range) }
        zeroedByteCount.add(range.length, ordering: .relaxed)
    }

    private func blockLength(_ start: Int, _ byteCount: Int) -> Int {
        min(Int(blockByteCount), byteCount - start)
    }

    /// Only whole blocks count: shorter ones at the end of an image are written as they are.
    private func isZeroBlock(_ bytes: UnsafeRawPointer, _ start: Int, _ byteCount: Int) -> Bool {
        byteCount - start >= Int(blockByteCount)
            && cl_is_zero(bytes + start, Int(blockByteCount))
    }
}
