import BlockModel
import EngineState
import Testing

@Suite struct `Lists of requests` {
    private func all(_ list: inout RequestList, _ table: RequestTable) -> [UInt32] {
        var found: [UInt32] = []
        while let index = table.pop(&list) { found.append(index.rawValue) }
        return found
    }

    @Test(arguments: [0, 1, 2, 3])
    func `a request leaves its list from any place`(left: UInt32) {
        let table = RequestTable(capacity: 8)
        defer { table.deallocate() }
        var list = RequestList()
        for index in UInt32(1)..<4 { table.append(RequestIndex(index), to: &list) }
        table.prepend(RequestIndex(0), to: &list)
        table.remove(RequestIndex(left), from: &list)
        #expect(all(&list, table) == [0, 1, 2, 3].filter { $0 != left })
        #expect(list.isEmpty)
    }

    @Test func `a request is on a list by arrival beside another one`() {
        let table = RequestTable(capacity: 8)
        defer { table.deallocate() }
        var (list, arrived) = (RequestList(), RequestList())
        for index in UInt32(0)..<4 {
            table.appendByArrival(RequestIndex(index), to: &arrived)
            table.prepend(RequestIndex(index), to: &list)
        }
        table.removeByArrival(RequestIndex(0), from: &arrived)
        table.removeByArrival(RequestIndex(2), from: &arrived)
        #expect(arrived.head == RequestIndex(1) && arrived.tail == RequestIndex(3))
        #expect(table[RequestIndex(1)].delayNext == RequestIndex(3))
        #expect(all(&list, table) == [3, 2, 1, 0])
    }
}
