internal import BlockModel
internal import RingIO

/// Requests of one owner that wait for it, linked through their slots: the links are a target's
/// only while it holds the request.
struct RequestQueue {
    private var first = RequestIndex.none
    private var last = RequestIndex.none
    private(set) var count = 0

    mutating func append(_ index: RequestIndex, in requests: RequestPool) {
        requests.pointer(to: index).pointee.next = .none
        if count == 0 {
            first = index
        } else {
            requests.pointer(to: last).pointee.next = index
        }
        last = index
        count += 1
    }

    mutating func popFirst(in requests: RequestPool) -> RequestIndex? {
        guard count > 0 else { return nil }
        let index = first
        first = requests[index].next
        count -= 1
        return index
    }
}
