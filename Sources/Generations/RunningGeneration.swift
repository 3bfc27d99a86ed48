package import BlockModel
package import ChangeTracking
internal import CLinux
internal import Glibc

// The generation of a device while its loop serves it: keeps the header in shared memory true, so
// that a service killed between any two instructions leaves a map that says what it knows.
//
// Invariants
// - The header names an epoch before the map marks in it, and a new generation before the entries
//   of the old one are forgotten.
// - Tracking that is lost is written down before the first write goes unmarked.

/// Keeps a device's generation. Confined to the device's loop.
package final class RunningGeneration {
    /// The map, shared with the running file.
    package private(set) var memory: ChangeMapMemory
    /// What the running file says of the generation.
    package private(set) var header: MapFileHeader
    /// Whether the generation continues an earlier one, for people.
    package private(set) var status: GenerationStatus

    package init(_ opened: OpenedGeneration) {
        memory = opened.memory
        header = opened.header
        status = opened.status
    }

    /// The map to mark in.
    package var changeMap: ChangeMap {
        memory.changeMap(current: header.epoch, newestBase: header.newestBase)
    }

    /// A cut is about to end the current epoch.
    package func cutComing(isBase: Bool) {
        let ended = header.epoch
        header.epoch = Epoch(ended.rawValue + 1)
        if isBase { header.newestBase = ended.rawValue }
        header.lastCutSeconds = UInt64(max(0, Glibc.time(nil)))
        write()
    }

    /// The newest cut usable as a base is another one.
    package func newestBaseChanged(to base: UInt32) {
        header.newestBase = base
        write()
    }

    /// What changes from now on is not known.
    package func trackingLost(_ reason: NewGenerationReason) {
        header.state = .invalid
        status = GenerationStatus(
            isContinued: false, reason: "changes are not tracked: \(reason.sentence)")
        write()
    }

    /// A live device continues with another set of marks: nothing is known of what was before.
    package func marksRenewed(_ token: UniqueID) { header.origin.liveToken = token }

    /// Begins a new generation, whose map is empty. No write may be under way.
    package func generationBegins(_ reason: NewGenerationReason, size: UInt64) {
        let sequence = header.sequence
        header = MapFileHeader(
            beginning: Generation(id: .random()), of: header.name, state: .running, size: size,
            bootID: header.bootID, instance: header.instance, origin: header.origin)
        header.sequence = sequence
        status = GenerationStatus(began: reason)
        write()
        memory.forgetAll()
    }

    /// The device has another size, and the map other memory if it grew beyond the former.
    package func resized(to size: UInt64, _ memory: ChangeMapMemory?) {
        if let memory { self.memory = memory }
        header.size = size
        write()
    }

    private func write() {
        header.sequence += 1
        memory.write(header)
    }
}
