import EngineState
import SnapshotCore

/// What was reached, over all seeds; what was not is named at the end.
package final class Coverage {
    /// Things that must happen in a run worth its name.
    enum Point: String, CaseIterable {
        case issue, issuePart, finish, readOrigin, writeStorage, readOriginForImage
        case readStorageForImage, copyFromMemory, fillZero, fillBlocks, requestExtent
        case releaseExtent, sourceClosed, sourceDrained, reserveMapPage, gateDrained
        case snapshotCorrupted, overlayCorrupted, snapshotGone, timer
        case timeReached, shortTransfer, storageWriteFault, originWriteFault, copyReadFault
        case storageReadFault, bitRot, mapRefused, extentRefused, imageReadChecked
        case imageWriteFailed, storageAppended, fastPath
        case destroyed, cutUndone, cutMade, cutFailed, changesChecked, frozenChangesChecked
        case shrunk, grown, refused, lateWrite, lateImageUser, outage
        case findHoles, holeFound, noHoleFound
        case changesDeclared, changesDeclaredToSnapshot
        case serviceKilled, machineCrashed, generationBegun
    }

    private var counts: [Point: Int] = [:]

    package init() {}

    func hit(_ point: Point) { counts[point, default: 0] += 1 }

    func hit(_ effect: Effect) {
        switch effect {
        case .issue: hit(.issue)
        case .issuePart: hit(.issuePart)
        case .findHoles: hit(.findHoles)
        case .finish: hit(.finish)
        case .readOrigin: hit(.readOrigin)
        case .writeStorage: hit(.writeStorage)
        case .readOriginForImage: hit(.readOriginForImage)
        case .readStorageForImage: hit(.readStorageForImage)
        case .copyFromMemory: hit(.copyFromMemory)
        case .fillZero: hit(.fillZero)
        case .fillBlocks: hit(.fillBlocks)
        case .requestExtent: hit(.requestExtent)
        case .releaseExtent: hit(.releaseExtent)
        case .sourceClosed: hit(.sourceClosed)
        case .sourceDrained: hit(.sourceDrained)
        case .reserveMapPage: hit(.reserveMapPage)
        case .gateDrained: hit(Point.gateDrained)
        case .snapshotCorrupted: hit(.snapshotCorrupted)
        case .overlayCorrupted: hit(.overlayCorrupted)
        case .snapshotGone: hit(.snapshotGone)
        case .timer: hit(.timer)
        }
    }

    /// One line per reached point, and the names of the others.
    package var report: (reached: [String], unreached: [String]) {
        let reached = Point.allCases.filter { counts[$0] != nil }
        let unreached = Point.allCases.filter { counts[$0] == nil }
        return (reached.map { "\($0.rawValue) \(counts[$0]!)" }, unreached.map(\.rawValue))
    }
}
