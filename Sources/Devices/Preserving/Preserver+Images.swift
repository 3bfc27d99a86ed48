internal import BlockModel
internal import CLinux
internal import CopyOnWrite
internal import EngineState
internal import Glibc
internal import OriginIO
internal import RingIO
internal import SnapshotCore
internal import Storage

// Reads and writes of images. An image's payload buffers cover whole blocks (its alignment is a
// block), so stored blocks are read straight to where they belong.

extension Preserver {
    /// Where device block `block` of an image request's read belongs.
    func destination(
        of index: RequestIndex, _ target: ImageTarget, block: UInt64
    ) -> UnsafeMutableRawPointer {
        switch target {
        case .buffer(let buffer): return preservation.address(of: buffer)
        case .payload:
            let request = requests.pointer(to: index)
            guard let payload = request.pointee.buffer else {
                preconditionFailure("an image request without a buffer")
            }
            return payload + (Int(block * blockByteCount) - Int(request.pointee.offset))
        }
    }

    func readOriginForImage(_ index: RequestIndex, offset: UInt64, length: UInt64) {
        let block = offset / blockByteCount
        let target = engine.target(of: index)
        let place =
            destination(of: index, target, block: block) + Int(offset - block * blockByteCount)
        if case .buffer(let buffer) = target {
            memset(preservation.address(of: buffer), 0, Int(blockByteCount))
        }
        let wanted = ByteRange(offset: offset, length: length)
        let outer = wanted.roundedOutward(to: UInt64(access.facts.offsetAlignment))
        let head = Int(offset - outer.offset)
        let operation = ImageOperation(
            request: index, source: .origin, offset: offset, length: length, headByteCount: head,
            destination: place - head, nextFree: nil)
        let token = begin(operation)
        let result = access.read(
            self, tag: PreserverStep.imageRead.rawValue, token: token,
            into: operation.destination, byteCount: Int(outer.length), offset: outer.offset,
            work: Int(outer.length))
        if let result = begun(result) { imageReadCompleted(end(token), result) }
    }

    func readStorageForImage(
        _ index: RequestIndex, _ source: SourceIndex, byteOffset: UInt64, slot: StorageSlot,
        firstBlock: UInt64, blockCount: Int
    ) {
        let storage = device.source(source)
        let byteCount = blockCount * Int(blockByteCount)
        let operation = ImageOperation(
            request: index,
            source: .storage(slot, firstBlock: firstBlock, blockCount: blockCount),
            offset: firstBlock * blockByteCount, length: UInt64(byteCount), headByteCount: 0,
            destination: destination(of: index, engine.target(of: index), block: firstBlock),
            nextFree: nil)
        switch storage.access {
        case .memory(let address):
            guard let place = UnsafeRawPointer(bitPattern: address + UInt(byteOffset)) else {
                preconditionFailure("memory storage has an address")
            }
            operation.destination.copyMemory(from: place, byteCount: byteCount)
            imageReadCompleted(operation, Int32(byteCount))
        case .inline(let descriptor):
            startStorageRead(
                operation, descriptor, isInline: true, byteCount: byteCount, from: byteOffset)
        case .ring(let descriptor):
            startStorageRead(
                operation, descriptor, isInline: false, byteCount: byteCount, from: byteOffset)
        }
    }

    private func startStorageRead(
        _ operation: ImageOperation, _ descriptor: Int32, isInline: Bool, byteCount: Int,
        from offset: UInt64
    ) {
        if isInline, loop.takeInline(byteCount: byteCount) {
            let result = pread(descriptor, operation.destination, byteCount, off_t(offset))
            return imageReadCompleted(operation, result < 0 ? -errno : Int32(result))
        }
        _ = begun(nil)
        loop.read(
            self, tag: PreserverStep.imageRead.rawValue, token: begin(operation),
            descriptor: descriptor, into: operation.destination, byteCount: byteCount,
            offset: offset)
    }

    func imageReadCompleted(_ operation: ImageOperation, _ result: Int32) {
        let isAgain = result == -EINTR || result == -EAGAIN
        let fault = result < 0 && !isAgain ? Fault(errnoValue: -result) : nil
        let useful = max(Int(result) - operation.headByteCount, 0)
        switch operation.source {
        case .origin:
            if let fault { device.originFailed(fault) }
            engine.imageOriginReadFinished(
                operation.request, offset: operation.offset, length: operation.length,
                byteCount: min(UInt64(useful), operation.length), fault: fault)
        case .storage(let slot, let firstBlock, let blockCount):
            withUnsafeTemporaryAllocation(of: UInt32.self, capacity: blockCount) { checksums in
                for position in 0..<blockCount {
                    checksums[position] = cl_crc32c(
                        operation.destination + position * Int(blockByteCount),
                        Int(blockByteCount))
                }
                guard let base = checksums.baseAddress else {
                    preconditionFailure("a read of blocks has checksums")
                }
                engine.imageStorageReadFinished(
                    operation.request, slot: slot, firstBlock: firstBlock,
                    blockCount: blockCount, byteCount: UInt64(useful), fault: fault,
                    checksums: UnsafePointer(base))
            }
        }
    }

    /// Lays the payload, or zeroes, over the blocks of an image write's window.
    func fillBlocks(_ index: RequestIndex) {
        let request = requests.pointer(to: index)
        let range = request.pointee.range
        var zeroMask: UInt16 = 0
        withUnsafeTemporaryAllocation(of: UInt32.self, capacity: 16) { checksums in
            var position = 0
            var next = engine.firstBuffer(of: index)
            while let (buffer, block) = next {
                let address = preservation.address(of: buffer)
                let start = max(block * blockByteCount, range.offset)
                let end = min((block + 1) * blockByteCount, range.end)
                let place = address + Int(start - block * blockByteCount)
                if request.pointee.operation == .write, let payload = request.pointee.buffer {
                    place.copyMemory(
                        from: payload + Int(start - range.offset), byteCount: Int(end - start))
                } else {
                    memset(place, 0, Int(end - start))
                }
                checksums[position] = 0
                if cl_is_zero(address, Int(blockByteCount)) {
                    zeroMask |= 1 << UInt16(position)
                } else {
                    checksums[position] = cl_crc32c(address, Int(blockByteCount))
                }
                position += 1
                next = engine.nextBuffer(after: buffer, of: index)
            }
            guard let base = checksums.baseAddress else {
                preconditionFailure("sixteen checksums have an address")
            }
            engine.imageBlocksFilled(index, zeroMask: zeroMask, checksums: UnsafePointer(base))
        }
    }
}
