internal import CopyOnWrite
package import Origins
package import RingIO

// From what was opened to a source: what it is made of, and how large its parts are.

extension StorageSource {
    /// Takes over what was opened, which stays the caller's when this throws. What can grow uses at
    /// most `limit` bytes; `deviceCount` devices share it.
    package static func over(
        _ opened: OpenedStorage, limit: UInt64, deviceCount: Int, blocking: BlockingPool,
        notify: @escaping @Sendable (Notice) -> Void
    ) throws(AttachError) -> StorageSource {
        let medium: any StorageMedium
        let space: StorageSpace
        switch opened.medium {
        case .file(let descriptor, let isInline):
            let file = FileMedium(descriptor: descriptor, isInline: isInline)
            // What the filesystem has now is all that is certain.
            let usable = file.room()?.usable ?? limit
            try checkSize(min(limit, usable), of: opened)
            medium = file
            let extent = ExtentSize.byteCount(for: min(limit, usable), deviceCount: deviceCount)
            let step = isInline ? GrowthSteps.paged : GrowthSteps.most(for: min(limit, usable))
            space = StorageSpace(
                growingTo: limit, firstStep: step, growthStepMax: step, extentByteCount: extent)
        case .blockDevice(let descriptor, let byteCount):
            try checkSize(byteCount, of: opened)
            medium = BlockDeviceMedium(descriptor: descriptor)
            space = fixed(byteCount, deviceCount)
        case .memory(let byteCount):
            try checkSize(byteCount, of: opened)
            medium = try MemoryMedium(byteCount: byteCount)
            space = fixed(byteCount, deviceCount)
        }
        return StorageSource(
            name: opened.name, medium: medium, foundations: opened.foundations, space: space,
            jobs: PoolJobs(blocking: blocking), notify: notify)
    }

    private static func fixed(_ byteCount: UInt64, _ deviceCount: Int) -> StorageSpace {
        StorageSpace(
            fixed: byteCount,
            extentByteCount: ExtentSize.byteCount(for: byteCount, deviceCount: deviceCount))
    }

    /// Space is handed out in extents, and each device wants one at least.
    private static func checkSize(
        _ byteCount: UInt64, of opened: OpenedStorage
    ) throws(AttachError) {
        guard byteCount >= StorageNeed.sourceLeast else {
            throw AttachError(
                .unsuitable,
                "storage \(opened.name) would have \(byteCount) bytes; give at least "
                    + "\(StorageNeed.sourceLeast >> 10)K")
        }
    }
}
