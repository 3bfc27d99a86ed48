package import BlockModel

// Which filesystems are frozen for a cut, and in which order.
//
//   mounts, what stands on what, what the user asks for, what must stay writable  -->  targets
//
// Invariants
// - A filesystem is a target once, however often it is mounted.
// - A filesystem that stands on another one (a disk image in it, mounted) is frozen before that
//   one; those that have nothing to do with each other in reverse order of mounting.
// - What holds an origin, the service's directories, storage or logs is refused, not skipped: its
//   freeze would stop the very writes that the cut waits for.

/// What the user asks to freeze.
package struct FreezeSelection: Equatable, Sendable {
    /// All filesystems mounted from the local block devices of the snapshot's devices.
    package var isAutomatic: Bool
    /// Mount points named besides, absolute.
    package var mountPoints: [String]

    package init(isAutomatic: Bool, mountPoints: [String] = []) {
        self.isAutomatic = isAutomatic
        self.mountPoints = mountPoints
    }

    /// What holds when nothing is said.
    package static let standard = FreezeSelection(isAutomatic: true)
}

/// A filesystem that is mounted, at one place or several.
package struct MountedFilesystem: Equatable, Sendable {
    package let device: DeviceNumber
    /// In the order in which they were made.
    package var mounts: [Mount]
    /// Numbers of all it stands on: block devices, the disks under them, filesystems that hold
    /// their images.
    package var foundations: Set<DeviceNumber>

    package init(device: DeviceNumber, mounts: [Mount], foundations: Set<DeviceNumber>) {
        self.device = device
        self.mounts = mounts
        self.foundations = foundations
    }
}

/// A filesystem that is mounted in other mount namespaces only (in containers, say).
package struct ForeignFilesystem: Equatable, Sendable {
    package let filesystem: MountedFilesystem
    /// A process that sees it.
    package let processID: Int32

    package init(filesystem: MountedFilesystem, processID: Int32) {
        self.filesystem = filesystem
        self.processID = processID
    }
}

/// Something that must stay writable while filesystems are frozen.
package struct FreezeExclusion: Equatable, Sendable {
    /// Such as `the state directory /var/lib/stillpoint`.
    package let what: String
    /// Numbers of all it stands on.
    package let devices: Set<DeviceNumber>

    package init(what: String, devices: Set<DeviceNumber>) {
        self.what = what
        self.devices = devices
    }
}

/// Why filesystems are not frozen.
package enum FreezeRefusal: Error, Equatable {
    /// Nothing is mounted there.
    case notMounted(mountPoint: String)
    /// It holds what must stay writable.
    case holds(mountPoint: String, what: String)
    /// More than `FreezePlan.targetCountMax`.
    case tooMany(count: Int)
}

/// The filesystems to freeze, in this order; see the head of this file.
package struct FreezePlan: Equatable, Sendable {
    /// A filesystem to freeze.
    package struct Target: Equatable, Sendable {
        package let device: DeviceNumber
        /// The mount point people know it by.
        package let name: String
        /// Where it can be reached.
        package let mounts: [Mount]
        /// Which of the snapshot's devices it stands on, by index.
        package let covered: Set<Int>
    }

    /// Most filesystems frozen for one cut.
    package static let targetCountMax = 64

    package let targets: [Target]
    /// Mount points of filesystems that stand on the snapshot's devices and are no target.
    package let leftOut: [String]
    /// A filesystem that stands on the snapshot's devices and is mounted where this machine's
    /// service does not reach it.
    package struct OutOfReach: Equatable, Sendable {
        /// The mount point as `processID` sees it.
        package let name: String
        package let processID: Int32
    }

    /// Those in other mount namespaces: never frozen, since what thaws them after the service's
    /// death could not find them either.
    package let outOfReach: [OutOfReach]
    /// How many devices the snapshot has.
    package let deviceCount: Int

    /// `blockDevices`: numbers of the local block devices of each of the snapshot's devices;
    /// `elsewhere`: what other mount namespaces have mounted.
    package init(
        _ selection: FreezeSelection, filesystems: [MountedFilesystem],
        elsewhere: [ForeignFilesystem] = [], blockDevices: [Set<DeviceNumber>],
        protected: [FreezeExclusion]
    ) throws(FreezeRefusal) {
        var named: [DeviceNumber: String] = [:]
        for mountPoint in selection.mountPoints {
            let device = try Self.filesystem(at: mountPoint, filesystems)
            named[device] = named[device] ?? mountPoint
        }
        var targets: [MountedFilesystem] = []
        var leftOut: [String] = []
        for filesystem in filesystems {
            let isOurs = !Self.covered(filesystem, blockDevices).isEmpty
            if named[filesystem.device] != nil || (isOurs && selection.isAutomatic) {
                targets.append(filesystem)
            } else if isOurs {
                leftOut.append(Self.name(filesystem))
            }
        }
        guard targets.count <= Self.targetCountMax else { throw .tooMany(count: targets.count) }
        for target in targets {
            let exclusion = protected.first { $0.devices.contains(target.device) }
            if let exclusion {
                throw .holds(
                    mountPoint: named[target.device] ?? Self.name(target), what: exclusion.what)
            }
        }
        self.targets = Self.ordered(targets).map { filesystem in
            Target(
                device: filesystem.device,
                name: named[filesystem.device] ?? Self.name(filesystem),
                mounts: filesystem.mounts, covered: Self.covered(filesystem, blockDevices))
        }
        self.leftOut = leftOut
        // A request to freeze nothing gets no report of what was not frozen.
        let isAsked = selection.isAutomatic || !selection.mountPoints.isEmpty
        outOfReach = elsewhere.filter { foreign in
            isAsked && !Self.covered(foreign.filesystem, blockDevices).isEmpty
                && !filesystems.contains { $0.device == foreign.filesystem.device }
        }.map { OutOfReach(name: Self.name($0.filesystem), processID: $0.processID) }
        deviceCount = blockDevices.count
    }

    /// Whether the images are as their filesystems left them, when the targets with these indexes
    /// were frozen: nothing mounted here was left out, nothing is out of reach, and every device is
    /// covered by a frozen filesystem, as far as this machine can see. A filesystem that was named
    /// and stands on none of our block devices (one reached through a client of ours) counts for
    /// the devices nothing else covers: that is what its user says by naming it.
    package func isFilesystemConsistent(frozen: Set<Int>) -> Bool {
        guard !targets.isEmpty, frozen.count == targets.count, leftOut.isEmpty,
            outOfReach.isEmpty
        else { return false }
        let covered = targets.reduce(into: Set<Int>()) { $0.formUnion($1.covered) }
        return covered.count == deviceCount || targets.contains { $0.covered.isEmpty }
    }

    /// The filesystem that is seen at a path: the one mounted there last.
    private static func filesystem(
        at mountPoint: String, _ filesystems: [MountedFilesystem]
    ) throws(FreezeRefusal) -> DeviceNumber {
        let path = Array(mountPoint.utf8)
        let there = filesystems.flatMap(\.mounts).filter { $0.path == path }
        guard let newest = there.max(by: { $0.position < $1.position }) else {
            throw .notMounted(mountPoint: mountPoint)
        }
        return newest.device
    }

    private static func covered(
        _ filesystem: MountedFilesystem, _ blockDevices: [Set<DeviceNumber>]
    ) -> Set<Int> {
        Set(
            blockDevices.indices.filter {
                !blockDevices[$0].isDisjoint(with: filesystem.foundations)
            })
    }

    private static func name(_ filesystem: MountedFilesystem) -> String {
        filesystem.mounts.first?.name ?? filesystem.device.description
    }

    /// Newest first, but nothing before what stands on it.
    private static func ordered(_ targets: [MountedFilesystem]) -> [MountedFilesystem] {
        func age(_ filesystem: MountedFilesystem) -> Int {
            filesystem.mounts.map(\.position).min() ?? 0
        }
        var waiting = targets.sorted { age($0) > age($1) }
        var ordered: [MountedFilesystem] = []
        while !waiting.isEmpty {
            let free = waiting.firstIndex { candidate in
                !waiting.contains {
                    $0.device != candidate.device && $0.foundations.contains(candidate.device)
                }
            }
            // Nothing stands on what stands on it; were the kernel to say so, any order would do.
            ordered.append(waiting.remove(at: free ?? waiting.startIndex))
        }
        return ordered
    }
}
