import BlockModel
import FreezePlanning
import Testing

@Suite struct `What is frozen for a cut` {
    /// A filesystem with the number 7:minor, mounted at `places` (position and path).
    private func filesystem(
        _ minor: UInt32, _ places: [(Int, String)], on others: [UInt32] = []
    ) -> MountedFilesystem {
        MountedFilesystem(
            device: number(minor),
            mounts: places.map { position, path in
                Mount(
                    id: UInt64(position), position: position, device: number(minor),
                    path: Array(path.utf8), type: "ext4", source: [])
            }, foundations: Set(([minor] + others).map(number)))
    }

    private func number(_ minor: UInt32) -> DeviceNumber { DeviceNumber(major: 7, minor: minor) }

    private func plan(
        _ selection: FreezeSelection, _ filesystems: [MountedFilesystem],
        elsewhere: [ForeignFilesystem] = [], devices: [[UInt32]],
        protected: [FreezeExclusion] = []
    ) throws(FreezeRefusal) -> FreezePlan {
        try FreezePlan(
            selection, filesystems: filesystems, elsewhere: elsewhere,
            blockDevices: devices.map { Set($0.map(number)) }, protected: protected)
    }

    @Test func `is not what only another mount namespace has mounted, which is told`() throws {
        let here = [filesystem(1, [(1, "/a")])]
        let elsewhere = [
            // The same filesystem as here, one of a partition, and one of another disk.
            ForeignFilesystem(filesystem: filesystem(1, [(1, "/x")]), processID: 10),
            ForeignFilesystem(filesystem: filesystem(2, [(2, "/y")], on: [9]), processID: 11),
            ForeignFilesystem(filesystem: filesystem(3, [(3, "/z")]), processID: 12),
        ]
        let plan = try plan(.standard, here, elsewhere: elsewhere, devices: [[1, 9]])
        #expect(plan.targets.map(\.name) == ["/a"])
        #expect(plan.outOfReach.map(\.name) == ["/y"])
        #expect(plan.outOfReach.map(\.processID) == [11])
        #expect(!plan.isFilesystemConsistent(frozen: [0]))
        let none = try self.plan(
            FreezeSelection(isAutomatic: false), here, elsewhere: elsewhere, devices: [[1, 9]])
        #expect(none.outOfReach.isEmpty)
    }

    @Test func `is what is mounted from its block devices, the last mounted first`() throws {
        let plan = try plan(
            .standard,
            [
                filesystem(1, [(1, "/a")]), filesystem(2, [(2, "/b")]),
                filesystem(3, [(3, "/c")]),
            ], devices: [[1], [3]])
        #expect(plan.targets.map(\.name) == ["/c", "/a"])
        #expect(plan.targets.map(\.covered) == [[1], [0]])
        #expect(plan.isFilesystemConsistent(frozen: [0, 1]))
        #expect(!plan.isFilesystemConsistent(frozen: [0]))
    }

    @Test func `is each filesystem once, however often it is mounted`() throws {
        let plan = try plan(
            FreezeSelection(isAutomatic: true, mountPoints: ["/bound", "/a"]),
            [filesystem(1, [(1, "/a"), (5, "/bound")]), filesystem(2, [(2, "/b")])],
            devices: [[1]])
        #expect(plan.targets.map(\.name) == ["/bound"])
        #expect(plan.targets[0].mounts.map(\.name) == ["/a", "/bound"])
    }

    @Test func `freezes an image's filesystem before the one the image is in`() throws {
        // 2 is an image in 1, 3 an image in 2; 1 was unmounted and mounted again last.
        let stacked = [
            filesystem(3, [(1, "/c")], on: [2, 1]), filesystem(2, [(2, "/b")], on: [1]),
            filesystem(1, [(9, "/a")]), filesystem(4, [(4, "/d")]),
        ]
        let plan = try plan(.standard, stacked, devices: [[1], [4]])
        #expect(plan.targets.map(\.name) == ["/d", "/c", "/b", "/a"])
        #expect(plan.targets.map(\.covered) == [[1], [0], [0], [0]])
    }

    @Test func `is what was mounted last where several are mounted at one place`() throws {
        let filesystems = [
            filesystem(1, [(1, "/a")]), filesystem(2, [(3, "/a")]), filesystem(3, [(2, "/a")]),
        ]
        let plan = try plan(
            FreezeSelection(isAutomatic: false, mountPoints: ["/a"]), filesystems, devices: [[]])
        #expect(plan.targets.map(\.device) == [number(2)])
    }

    @Test func `is refused where nothing is mounted`() {
        #expect(throws: FreezeRefusal.notMounted(mountPoint: "/x")) {
            try plan(
                FreezeSelection(isAutomatic: true, mountPoints: ["/a", "/x"]),
                [filesystem(1, [(1, "/a")])], devices: [[]])
        }
    }

    @Test func `is refused where it holds what must stay writable, not skipped`() {
        let exclusion = FreezeExclusion(
            what: "the state directory", devices: [number(1), number(9)])
        let filesystems = [
            filesystem(1, [(1, "/a")]), filesystem(2, [(2, "/b")], on: [1]),
        ]
        #expect(throws: FreezeRefusal.holds(mountPoint: "/a", what: "the state directory")) {
            try plan(.standard, filesystems, devices: [[1]], protected: [exclusion])
        }
        #expect(throws: FreezeRefusal.holds(mountPoint: "/a", what: "the state directory")) {
            try plan(
                FreezeSelection(isAutomatic: false, mountPoints: ["/a"]), filesystems,
                devices: [[]],
                protected: [exclusion])
        }
        #expect(throws: Never.self) {
            // What stands on the same devices is not excluded itself.
            try plan(
                FreezeSelection(isAutomatic: false, mountPoints: ["/b"]), filesystems,
                devices: [[]],
                protected: [exclusion])
        }
    }

    @Test func `is refused beyond a number`() {
        let count = FreezePlan.targetCountMax + 1
        let filesystems = (1...count).map { filesystem(UInt32($0), [($0, "/\($0)")]) }
        #expect(throws: FreezeRefusal.tooMany(count: count)) {
            try plan(.standard, filesystems, devices: [filesystems.map(\.device.minor)])
        }
    }

    @Test func `makes consistent images only where nothing is left out or unseen`() throws {
        let filesystems = [
            filesystem(1, [(1, "/a")]), filesystem(2, [(2, "/b")]), filesystem(8, [(3, "/far")]),
        ]
        let onlyA = FreezeSelection(isAutomatic: false, mountPoints: ["/a"])
        let left = try plan(onlyA, filesystems, devices: [[1], [2]])
        #expect(left.leftOut == ["/b"] && !left.isFilesystemConsistent(frozen: [0]))
        // The second device has no block device here: who writes to it is not seen.
        #expect(
            try !plan(.standard, filesystems, devices: [[1], []])
                .isFilesystemConsistent(frozen: [0]))
        // The user's word that it is the one at /far.
        let named = FreezeSelection(isAutomatic: true, mountPoints: ["/far"])
        #expect(
            try plan(named, filesystems, devices: [[1], []])
                .isFilesystemConsistent(frozen: [0, 1]))
        let none = try plan(FreezeSelection(isAutomatic: false), filesystems, devices: [[]])
        #expect(none.targets.isEmpty && !none.isFilesystemConsistent(frozen: []))
    }
}
