internal import Glibc

// The open /dev/fuse files that a guardian holds, each with what the next service must know.
//
// Invariants
// - All memory is there from the start: holding, handing over and letting go allocate nothing.
// - A descriptor is closed when its device is released, or with all of them.

/// What a guardian holds; see the head of this file.
final class HeldDevices {
    /// Most devices.
    static let capacity = 256
    /// Most bytes of a note.
    static let noteByteCountMax = 2048

    /// One of them.
    struct Place {
        var key: UInt64
        var descriptor: Int32
        /// All that was read from it has been answered.
        var isDrained: Bool
        var noteByteCount: Int
    }

    private let places: UnsafeMutablePointer<Place>
    private let notes: UnsafeMutablePointer<UInt8>
    private(set) var count = 0

    init() {
        places = .allocate(capacity: Self.capacity)
        notes = .allocate(capacity: Self.capacity * Self.noteByteCountMax)
        // Touched now, so that it is resident.
        notes.initialize(repeating: 0, count: Self.capacity * Self.noteByteCountMax)
    }

    deinit {
        letGo()
        places.deallocate()
        notes.deallocate()
    }

    /// Holds a device from now on, or what is known of one that is held already: then
    /// `descriptor` may be -1. Takes the descriptor over when it returns true.
    func hold(_ key: UInt64, descriptor: Int32, isDrained: Bool, note: ArraySlice<UInt8>) -> Bool {
        guard note.count <= Self.noteByteCountMax else { return false }
        var index = index(of: key)
        if index == nil {
            guard descriptor >= 0, count < Self.capacity else { return false }
            index = count
            places[count] = Place(
                key: key, descriptor: descriptor, isDrained: isDrained, noteByteCount: 0)
            count += 1
        } else if let index, descriptor >= 0 {
            close(places[index].descriptor)
            places[index].descriptor = descriptor
        }
        guard let index else { return false }
        places[index].isDrained = isDrained
        places[index].noteByteCount = note.count
        for (offset, byte) in note.enumerated() {
            notes[index * Self.noteByteCountMax + offset] = byte
        }
        return true
    }

    /// Whether all that was read from a device has been answered; false when it is not held.
    func setDrained(_ key: UInt64, _ isDrained: Bool) -> Bool {
        guard let index = index(of: key) else { return false }
        places[index].isDrained = isDrained
        return true
    }

    /// Closes the descriptor of a device.
    func release(_ key: UInt64) {
        guard let index = index(of: key) else { return }
        close(places[index].descriptor)
        count -= 1
        guard index < count else { return }
        places[index] = places[count]
        (notes + index * Self.noteByteCountMax).update(
            from: notes + count * Self.noteByteCountMax, count: Self.noteByteCountMax)
    }

    /// Closes all descriptors: what no other process holds fails from now on.
    func letGo() {
        for index in 0..<count { close(places[index].descriptor) }
        count = 0
    }

    subscript(index: Int) -> Place {
        precondition((0..<count).contains(index), "a device that is held")
        return places[index]
    }

    /// The note of the device at `index`.
    func note(_ index: Int) -> UnsafeBufferPointer<UInt8> {
        UnsafeBufferPointer(
            start: notes + index * Self.noteByteCountMax, count: self[index].noteByteCount)
    }

    private func index(of key: UInt64) -> Int? { (0..<count).first { places[$0].key == key } }
}
