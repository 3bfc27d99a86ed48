import Testing

import BlockModel

@Suite struct `Geometry` {
    @Test func `a range touches every block it shares a byte with`() {
        #expect(blocks(touching: ByteRange(offset: 0, length: 1)) == 0..<1)
        #expect(blocks(touching: ByteRange(offset: 4095, length: 2)) == 0..<2)
        #expect(blocks(touching: ByteRange(offset: 4096, length: 4096)) == 1..<2)
        #expect(blocks(touching: ByteRange(offset: 9, length: 0)).isEmpty)
        #expect(chunks(touching: ByteRange(offset: 65535, length: 2)) == 0..<2)
    }

    @Test func `a range beyond the size, or one that wraps, is refused`() {
        #expect(ByteRange(checking: 10, length: 10, within: 20) != nil)
        #expect(ByteRange(checking: 10, length: 11, within: 20) == nil)
        #expect(ByteRange(checking: 21, length: 0, within: 20) == nil)
        #expect(ByteRange(checking: 8, length: .max, within: .max) == nil)
    }

    @Test func `rounding outward covers the range and rounding inward lies inside it`() {
        let range = ByteRange(offset: 700, length: 5000)
        #expect(range.roundedOutward(to: 512) == ByteRange(offset: 512, length: 5632))
        #expect(range.roundedOutward(to: 1) == range)
        #expect(range.roundedInward(to: 4096) == ByteRange(offset: 4096, length: 0))
        #expect(
            ByteRange(offset: 1, length: 12288).roundedInward(to: 4096)
                == ByteRange(offset: 4096, length: 8192))
    }

    @Test func `ranges overlap when they share a byte`() {
        let range = ByteRange(offset: 10, length: 10)
        #expect(range.overlaps(ByteRange(offset: 19, length: 1)))
        #expect(!range.overlaps(ByteRange(offset: 20, length: 1)))
        #expect(!range.overlaps(ByteRange(offset: 15, length: 0)))
    }

    @Test(arguments: ["vm1", "a", "0.x_y-z", String(repeating: "n", count: 64)])
    func `a name of letters, digits, dots, underscores and dashes is taken`(text: String) {
        #expect(ObjectName(text)?.text == text)
    }

    @Test(arguments: ["", ".a", "-a", "a b", "a/b", "a@b", "ä", String(repeating: "n", count: 65)])
    func `any other name is refused`(text: String) {
        #expect(ObjectName(text) == nil)
    }

    @Test func `an identifier reads back what it printed`() {
        let id = UniqueID.random()
        #expect(UniqueID(id.description) == id)
        #expect(id.description.count == 36)
        #expect(Array(id.description)[14] == "4")
        #expect(UniqueID("00000000-0000-0000-0000-00000000000g") == nil)
        #expect(UniqueID("0000000000000000000000000000000000") == nil)
    }
}
