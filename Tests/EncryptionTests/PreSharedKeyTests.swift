import Encryption
import Testing

@Suite struct `A file of pre-shared keys` {
    private func parse(_ text: String) throws -> PreSharedKeys {
        try PreSharedKeys(parsing: Array(text.utf8), of: "keys")
    }

    private let key = String(repeating: "0aF9", count: 8)

    @Test func `holds one name and key per line`() throws {
        let keys = try parse("alice:\(key)\n\nbob x:\(key)00\r\ncarol:\(key)")
        #expect(keys.key(of: "alice")?.prefix(2) == [0x0a, 0xf9])
        #expect(keys.key(of: "alice")?.count == 16)
        #expect(keys.key(of: "bob x")?.count == 17)
        #expect(keys.key(of: "carol") != nil)
        #expect(keys.key(of: "Alice") == nil && keys.key(of: "") == nil)
    }

    @Test func `CVE-2013-6410: a name that begins like a known one has no key`() throws {
        let keys = try parse("alice:\(key)\nbob:\(key)")
        for name in ["a", "alic", "alice ", "alicex", "alice:", "alice\0", "ALICE", "bo", "bobb"] {
            #expect(keys.key(of: name) == nil, "\(name)")
        }
    }

    @Test(arguments: [
        ("", "holds no key"), ("\n\n", "holds no key"),
        ("alice", "line 1: give NAME:HEXKEY"),
        (":00112233445566778899aabbccddeeff", "a name has 1 to 128 bytes"),
        ("alice:0g112233445566778899aabbccddeeff", "not hexadecimal"),
        ("alice:00112233445566778899aabbccddeef", "not hexadecimal"),
        ("alice:0011", "16 to 256 bytes"), ("alice:", "16 to 256 bytes"),
        ("# all keys", "comments"),
        (
            "a:00112233445566778899aabbccddeeff\na:00112233445566778899aabbccddeeff",
            "line 2: this name has a key already"
        ),
    ])
    func `is refused with the line and the reason`(text: String, reason: String) {
        let error = #expect(throws: EncryptionError.self) { try parse(text) }
        #expect(error?.message.contains(reason) == true, "\(error?.message ?? "")")
        #expect(error?.message.contains("00112233") != true, "a message never holds a key")
    }

    @Test func `has names and keys of bounded length`() throws {
        let name = String(repeating: "n", count: 128)
        let longest = String(repeating: "ab", count: 256)
        #expect(try parse("\(name):\(longest)").key(of: name)?.count == 256)
        #expect(throws: EncryptionError.self) { try parse("\(name)n:\(longest)") }
        #expect(throws: EncryptionError.self) { try parse("\(name):\(longest)ab") }
    }
}
