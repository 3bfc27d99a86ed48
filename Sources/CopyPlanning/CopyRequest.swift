/// What is wanted: the image of a device at a cut.
package struct CopyRequest: Sendable {
    /// A remembered cut, as the service tells it.
    package struct Base: Equatable, Sendable {
        package var name: String
        package var generation: String
        /// The epoch that ended at the cut.
        package var epoch: UInt32

        package init(name: String, generation: String, epoch: UInt32) {
            self.name = name
            self.generation = generation
            self.epoch = epoch
        }
    }

    /// A target whose name ends with this is a qcow2 file.
    package static let qcowSuffix = ".qcow2"

    package var device: String
    package var cut: CopyCut
    /// What the user called the snapshot.
    package var snapshot: String
    /// The cut that `--since` names.
    package var since: Base?
    /// Overwrite whatever the target holds.
    package var isForced: Bool
    /// A complete copy of another cut may be replaced: it is kept as a version, or the user left
    /// it to the program to choose.
    package var mayReplace: Bool

    package init(
        device: String, cut: CopyCut, snapshot: String? = nil, since: Base?, isForced: Bool,
        mayReplace: Bool = false
    ) {
        self.device = device
        self.cut = cut
        self.snapshot = snapshot ?? cut.snapshot
        self.since = since
        self.isForced = isForced
        self.mayReplace = mayReplace
    }
}

/// What the record of a target is.
package enum CopyRecordFound: Equatable, Sendable {
    case none
    /// Something other than a record.
    case damaged
    case record(CopyRecord)
}

/// What the target holds at this moment.
package struct CopyTargetFacts: Equatable, Sendable {
    package var path: String
    package var file: CopyRecord.File
    /// What a block device without a record seems to hold, such as "an ext4 filesystem".
    package var content: String?
    /// Where its record is, or would be.
    package var recordPath: String
    /// The target holds what its record says, as far as its samples or its own history tell; nil
    /// when there is nothing to tell by.
    package var samplesMatch: Bool?
    /// It can be made larger.
    package var canGrow: Bool
    /// A complete copy of another cut stays as a version when it is replaced in place.
    package var keepsVersions = false
    /// It holds nothing, whatever a record says.
    package var isEmpty: Bool

    package init(
        path: String, file: CopyRecord.File, content: String? = nil, recordPath: String? = nil,
        samplesMatch: Bool? = nil
    ) {
        self.path = path
        self.file = file
        self.content = content
        self.recordPath = recordPath ?? path + CopyRecord.suffix
        self.samplesMatch = samplesMatch
        canGrow = !file.isBlockDevice
        isEmpty = !file.isBlockDevice && file.size == 0
    }
}
