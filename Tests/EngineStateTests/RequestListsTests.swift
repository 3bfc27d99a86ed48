import BlockModel
import EngineState
import Testing

@Suite struct `Lists of requests` {
    private func all(_ list: inout RequestList, _ lists: RequestLists) -> [UInt32] {
        var found: [UInt32] = []
        while let index = lists.pop(&list) { found.append(index.rawValue) }
        return found
    }

    @Test(arguments: [0, 1, 2, 3])
    func `a request leaves its list from any place`(left: UInt32) {
        let lists = RequestLists(capacity: 8)
        defer { lists.deallocate() }
        var list = RequestList()
        for index in UInt32(1)..<4 { lists.append(RequestIndex(index), to: &list) }
        lists.prepend(RequestIndex(0), to: &list)
        lists.remove(RequestIndex(left), from: &list)
        #expect(all(&list, lists) == [0, 1, 2, 3].filter { $0 != left })
        #expect(list.isEmpty)
    }

    @Test func `a request is on a list by arrival beside another one`() {
        let lists = RequestLists(capacity: 8)
        defer { lists.deallocate() }
        var (list, arrived) = (RequestList(), RequestList())
        for index in UInt32(0)..<4 {
            lists.appendByArrival(RequestIndex(index), to: &arrived)
            lists.prepend(RequestIndex(index), to: &list)
        }
        lists.removeByArrival(RequestIndex(0), from: &arrived)
        lists.removeByArrival(RequestIndex(2), from: &arrived)
        #expect(arrived.head == RequestIndex(1) && arrived.tail == RequestIndex(3))
        #expect(lists.nextByArrival(after: RequestIndex(1)) == RequestIndex(3))
        #expect(all(&list, lists) == [3, 2, 1, 0])
    }
}
