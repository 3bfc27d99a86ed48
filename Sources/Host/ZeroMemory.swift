internal import Glibc

/// Memory that is always zero, to write zeroes from.
package enum ZeroMemory {
    /// Bytes that may be written from it at once.
    package static let byteCount = 1 << 20

    // SAFETY: never written, so all threads may read it.
    /// Where the zeroes begin.
    package nonisolated(unsafe) static let address: UnsafeRawPointer = {
        let mapping = mmap(nil, byteCount, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let mapping, mapping != UnsafeMutableRawPointer(bitPattern: -1) else {
            preconditionFailure("no address space for a megabyte of zeroes")
        }
        return UnsafeRawPointer(mapping)
    }()
}
