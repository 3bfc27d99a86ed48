internal import BlockModel
internal import ControlDocuments
internal import CopyOnWrite
internal import DataPlane
internal import Host
internal import Storage

/// Messages about difference storage: which limit was reached, and what to do. An
/// image that is given up is never reported as a loss of the device.
enum StorageTexts {
    /// Storage is nearly full.
    static func lowSpace(_ report: StorageSource.Report, of holder: String) -> String {
        let reason =
            switch report.bound {
            case .size: "of its size of \(sizeText(report.limit))"
            case .limit: "of its limit of \(sizeText(report.limit))"
            case .filesystem: "of what its filesystem can give"
            }
        return "snapshot \(holder): storage \(report.name) has \(sizeText(report.available)) left "
            + reason + "; " + appending(to: holder)
    }

    private static func appending(to holder: String) -> String {
        "append more with `stillpoint snapshot append-storage \(holder) --storage PLACE --limit "
            + "SIZE`"
    }

    /// Storage grew.
    static func grown(_ byteCount: UInt64, _ source: String, of holder: String) -> String {
        "snapshot \(holder): storage \(source) grew by \(byteCount) bytes"
    }

    /// A block device was given back with data on it.
    static func notErased(
        _ byteCount: UInt64, _ fault: Fault, _ source: String, of holder: String
    ) -> String {
        "snapshot \(holder): \(sizeText(byteCount)) of preserved data on storage \(source) could "
            + "not be erased (\(errnoText(fault.errnoValue))) and can still be read there; erase "
            + "the device, for example with `blkdiscard --zeroout \(source)`"
    }

    /// Why a source has no more room.
    private static func fullness(_ report: StorageSource.Report) -> String {
        switch report.bound {
        case .size: "\(report.name) is used up (\(sizeText(report.capacity)))"
        case .limit: "\(report.name) reached its limit of \(sizeText(report.limit))"
        case .filesystem:
            "the filesystem of \(report.name) can give no more than the "
                + "\(sizeText(report.capacity)) that were used"
        }
    }

    /// Why an image was given up, in a few words; the key `error` of a snapshot's device.
    static func loss(_ fault: Fault, _ policy: String, _ reports: [StorageSource.Report]) -> String
    {
        switch fault.errnoValue {
        case Fault.noSpace.errnoValue:
            "difference storage is full: " + reports.map(fullness).joined(separator: "; ")
        case Fault.noMemory.errnoValue:
            "the bookkeeping of the snapshot reached its limit of 256 MiB"
        case 110:
            "preserving was too slow: a writer would have waited longer than --on-overflow "
                + "\(policy) allows"
        case Fault.inputOutput.errnoValue:
            "old data could not be read from the origin, or not be written to difference storage "
                + "or read back (\(errnoText(fault.errnoValue)))"
        case Fault.deviceGone.errnoValue, 19:
            "the origin is gone or smaller than the image"
        default: errnoText(fault.errnoValue)
        }
    }

    /// An image was given up.
    static func corrupted(
        _ fault: Fault, reason: String, device: String, of holder: String
    ) -> String {
        let wayOut =
            fault == .noSpace
            ? "destroy the snapshot, and give the next one more room with --limit or --storage, or "
                + "in time with `stillpoint snapshot append-storage`"
            : "destroy the snapshot"
        return "snapshot \(holder): the image of device \(device) was given up and fails from now "
            + "on: \(reason). Device \(device) itself is not affected; \(wayOut)"
    }

    /// What was written through an image is lost.
    static func overlayCorrupted(
        _ fault: Fault, reason: String, device: String, of holder: String
    ) -> String {
        "snapshot \(holder): what was written to \(device)@\(holder):rw is lost: \(reason). The "
            + "read-only image and device \(device) itself are not affected"
    }

    /// A limit that the filesystem cannot keep; nil when it can.
    static func limitWarning(
        _ path: String, limit: UInt64, room: FilesystemRoom
    ) -> String? {
        guard limit > room.usable else { return nil }
        return "storage \(path): the limit of \(sizeText(limit)) is more than its filesystem can "
            + "give: \(sizeText(room.free)) are free, of which \(sizeText(room.reserve)) are kept "
            + "for others; preserving ends when the rest is used"
    }

    /// A filesystem without room.
    static func noRoom(_ path: String, _ room: FilesystemRoom) -> String {
        "storage \(path): its filesystem has \(sizeText(room.free)) left, of which "
            + "\(sizeText(room.reserve)) are kept for others; make room or name other storage with "
            + "--storage"
    }
}
