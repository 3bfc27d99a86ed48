package import BlockModel
internal import CopyOnWrite
internal import EngineState
internal import RingIO
internal import SnapshotCore

/// An image of a device: what exports of `DEVICE@SNAPSHOT` (and `:rw`) submit requests to. It
/// lives on the loop of its device and gives its requests to that device's engine.
package final class ImageDevice: BlockTarget {
    let device: Device
    let snapshot: SnapshotIndex
    let isWritable: Bool
    /// The snapshot was destroyed: its index may belong to another one by now.
    private(set) var isGone = false

    init(of device: Device, snapshot: SnapshotIndex, isWritable: Bool) {
        self.device = device
        self.snapshot = snapshot
        self.isWritable = isWritable
        super.init(size: device.engine.imageSize(of: snapshot), alignment: blockByteCount)
    }

    /// The snapshot goes: requests fail from now on, users are sent away.
    func snapshotDestroyed() {
        isGone = true
        closeUsers()
    }

    package override func submit(_ index: RequestIndex) {
        let request = device.requests.pointer(to: index)
        request.pointee.submittedNanoseconds = device.loop.now
        guard !isGone else { return finish(index, .shutdown) }
        if let fault = faultBeyondEnd(of: request.pointee) { return finish(index, fault) }
        guard request.pointee.length > 0 || request.pointee.operation == .flush else {
            return finish(index, nil)
        }
        switch request.pointee.operation {
        case .read:
            request.pointee.image = Unmanaged.passUnretained(self)
            admitted(
                index,
                device.engine.imageReadArrived(
                    index, snapshot: snapshot, overlay: isWritable,
                    offset: request.pointee.offset, length: request.pointee.length,
                    now: device.loop.now))
        case .write, .writeZeroes:
            guard isWritable else { return finish(index, .notPermitted) }
            request.pointee.image = Unmanaged.passUnretained(self)
            admitted(
                index,
                device.engine.imageWriteArrived(
                    index, snapshot: snapshot, operation: request.pointee.operation,
                    offset: request.pointee.offset, length: request.pointee.length,
                    now: device.loop.now))
        case .flush, .prefetch:
            // An overlay ends with the service: there is nothing that could outlive it.
            finish(index, nil)
        case .discard: finish(index, .notSupported)
        case .blockStatus:
            guard request.pointee.statusBase != nil else { return statusArrived(index) }
            // What was written through the image is not a change of the device, so it is not
            // reported.
            guard !isWritable else { return finish(index, .invalid) }
            device.changeStatusArrived(index, image: self)
        }
    }

    /// Tells the owner.
    func finish(_ index: RequestIndex, _ fault: Fault?) {
        device.imageMeter.finished(
            device.requests[index], now: device.loop.now, isFailure: fault != nil)
        device.requests.finish(index, fault)
    }

    private func admitted(_ index: RequestIndex, _ admission: Admission) {
        switch admission {
        case .taken: device.engineTouched()
        case .refused(let fault): finish(index, fault)
        case .issue: preconditionFailure("an image request never goes to the origin as it is")
        }
    }
}
