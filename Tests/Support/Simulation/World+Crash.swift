import BlockModel
import ChangeTracking
import CopyOnWrite
import EngineState
import SnapshotCore

// The service or the machine dies at any step. Writes in the kernel arrive wholly, in part or not
// at all; a service that starts again finds the map in shared memory, a machine a new generation.

extension World {
    func crash() {
        let isMachine = random.oneIn(3)
        coverage.hit(isMachine ? .machineCrashed : .serviceKilled)
        for (number, what) in pending {
            if case .originWrite(let request, let offset, let length) = what {
                let arrived = random.oneIn(2) ? length : UInt64(random.below(Int(length) + 1))
                apply(devices[number], request, offset, arrived)
            }
        }
        pending = []
        cut = nil
        buffers = BlockBuffers(capacity: buffers.capacity)
        for device in devices {
            let isNewGeneration = isMachine || device.isTrackingLost
            restart(device, isNewGeneration: isNewGeneration)
        }
        operations += 1
    }

    private func restart(_ device: SimulatedDevice, isNewGeneration: Bool) {
        if isNewGeneration {
            device.mapEntries.update(repeating: 0, count: Int(device.chunkCount))
            device.bases = []
            device.baseSizes = [:]
            device.newestBase = 0
            device.changed = [:]
            device.touched = [:]
            device.isTrackingLost = false
        }
        let map = ChangeMap(
            entries: device.mapEntries, reservedPages: device.mapReserved,
            chunkCount: device.chunkCount,
            current: isNewGeneration ? .first : device.engine.epoch,
            newestBase: isNewGeneration ? 0 : device.newestBase)
        if !map.isSound() { violate("a killed service left an impossible entry") }
        device.engine = SnapshotEngine(
            size: device.size, map: map, buffers: buffers, limits: limits)
        device.engine.originReportsHoles = profile.reportsHoles
        device.requests = Array(
            repeating: SimulatedRequest(), count: SimulatedDevice.requestCount)
        device.snapshots = [:]
        device.sources = [:]
        device.originWritesUnderWay = 0
        device.prepared = nil
        device.isGateClosed = false
        device.isSwitched = false
        device.timer = nil
        device.mapAnswersUnderWay = []
    }
}
