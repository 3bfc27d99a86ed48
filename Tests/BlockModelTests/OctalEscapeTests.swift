import BlockModel
import Testing

@Suite struct `Octal escapes` {
    @Test(
        arguments: [
            (#"a\040b"#, "a b"), (#"\011\012\134"#, "\t\n\\"), (#"\"#, #"\"#), (#"\04"#, #"\04"#),
            (#"\08x"#, #"\08x"#), (#"\777"#, #"\777"#), (#"\134040"#, #"\040"#), ("", ""),
        ])
    func `stand for one byte, and other backslashes for themselves`(text: String, plain: String) {
        #expect(OctalEscapes.removed(from: text) == plain)
    }

    @Test(arguments: ["/a b", "/new\nline", #"/back\slash"#, #"/\012"#, ""])
    func `are removed as they were added`(path: String) {
        let added = OctalEscapes.added(to: Array(path.utf8))
        #expect(!added.contains(10))
        #expect(OctalEscapes.removed(from: added[...]) == Array(path.utf8))
    }
}
