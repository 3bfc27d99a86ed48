internal import BlockModel
internal import ChangeTracking
internal import Synchronization

/// A disk that is tracked, with one window or several.
final class LiveDisk: Sendable {
    private struct State {
        var bitmap: LiveBitmap
        var finding: LiveFinding
        var lastDoubt: LiveDoubt?
        var windowCount = 0
    }

    let number: DeviceNumber
    private let state: Mutex<State>

    init(_ number: DeviceNumber, _ bitmap: LiveBitmap, finding: LiveFinding) {
        self.number = number
        state = Mutex(State(bitmap: bitmap, finding: finding))
    }

    var bitmap: LiveBitmap { state.withLock { $0.bitmap } }

    /// What was found of the marks when they were opened, or what befell them since.
    var finding: LiveFinding { state.withLock { $0.finding } }
    var lastDoubt: LiveDoubt? { state.withLock { $0.lastDoubt } }

    /// Windows that are in use; under the tracker's lock.
    var windowCount: Int {
        get { state.withLock { $0.windowCount } }
        set { state.withLock { $0.windowCount = newValue } }
    }

    /// A mark may have been missed: what generations named is void.
    func renew(_ doubt: LiveDoubt) {
        state.withLock { state in
            state.bitmap.renew()
            state.finding = .doubt(doubt)
            state.lastDoubt = doubt
        }
    }

    func replace(_ bitmap: LiveBitmap) { state.withLock { $0.bitmap = bitmap } }
}
