import Testing

// What clients newer than those of the machines that run the tests sent to this server, byte for
// byte, over a Unix socket to the export `disk` of 4 MiB. QEMU's clients leave the payload flag of
// their writes out, libnbd's sets it.

/// One connection of a client.
struct RecordedClient: Sendable, CustomTestStringConvertible {
    /// A request: a header and what followed it.
    struct Request: Sendable {
        let header: [UInt8]
        let payload: [UInt8]

        init(_ header: String) {
            self.header = bytes(header)
            payload = []
        }

        init(_ header: String, payload: String) {
            self.header = bytes(header)
            self.payload = bytes(payload)
        }

        /// `count` bytes of `byte`.
        init(_ header: String, payload byte: UInt8, _ count: Int) {
            self.header = bytes(header)
            payload = [UInt8](repeating: byte, count: count)
        }
    }

    let name: String
    /// The client's flags, then its options.
    let handshake: [[UInt8]]
    let requests: [Request]

    init(name: String, handshake: [String], requests: [Request]) {
        self.name = name
        self.handshake = handshake.map(bytes)
        self.requests = requests
    }

    var testDescription: String { name }

    static let all = [qemuIO, qemuImgMap, qemuImgBitmap, libnbd]

    static let qemuIO = RecordedClient(
        name: "qemu-io 10.0.13",
        handshake: [
            "00000003",
            "49484156454f50540000000b00000000",
            "49484156454f50540000000a0000001f000000046469736b000000010000000f62617365"
                + "3a616c6c6f636174696f6e",
            "49484156454f5054000000070000000c000000046469736b00010003",
        ],
        requests: [
            Request(
                "21e41c7100010001000000000000000100000000000020000000000000001000", payload: 0xab,
                4096),
            Request(
                "21e41c7100010001000000000000000100000000000030000000000000000200", payload: 0xcd,
                512),
            Request("21e41c7100000000000000000000000100000000000020000000000000001000"),
            Request("21e41c7100000004000000000000000100000000000100000000000000010000"),
            Request("21e41c7100030006000000000000000100000000000200000000000000010000"),
            Request("21e41c7100010006000000000000000100000000000400000000000000010000"),
            Request("21e41c7100000003000000000000000100000000000000000000000000000000"),
            Request(
                "21e41c7100010001000000000000000100000000001000000000000000004000", payload: 0x11,
                16384),
            Request(
                "21e41c7100010001000000000000000200000000002000000000000000004000", payload: 0x12,
                16384),
            Request("21e41c7100000003000000000000000100000000000000000000000000000000"),
            Request("21e41c7100000002000000000000000000000000000000000000000000000000"),
        ])

    static let qemuImgMap = RecordedClient(
        name: "qemu-img map 10.0.13",
        handshake: [
            "00000003",
            "49484156454f50540000000b00000000",
            "49484156454f50540000000a0000001f000000046469736b000000010000000f62617365"
                + "3a616c6c6f636174696f6e",
            "49484156454f5054000000070000000c000000046469736b00010003",
        ],
        requests: [
            Request("21e41c7100000000000000000000000100000000000000000000000000000200"),
            Request("21e41c7100080007000000000000000100000000000000000000000000400000"),
            Request("21e41c71000800070000000000000001000000000000200000000000003fe000"),
            Request("21e41c71000800070000000000000001000000000000400000000000003fc000"),
            Request("21e41c7100080007000000000000000100000000001000000000000000300000"),
            Request("21e41c71000800070000000000000001000000000010400000000000002fc000"),
            Request("21e41c7100080007000000000000000100000000002000000000000000200000"),
            Request("21e41c71000800070000000000000001000000000020400000000000001fc000"),
            Request("21e41c7100000002000000000000000000000000000000000000000000000000"),
        ])

    static let qemuImgBitmap = RecordedClient(
        name: "qemu-img map 10.0.13 of a dirty bitmap",
        handshake: [
            "00000003",
            "49484156454f50540000000b00000000",
            "49484156454f50540000000a00000025000000046469736b000000010000001571656d75"
                + "3a64697274792d6269746d61703a6d6f6e",
            "49484156454f5054000000070000000c000000046469736b00010003",
        ],
        requests: [
            Request("21e41c7100080007000000000000000100000000000000000000000000400000"),
            Request("21e41c71000800070000000000000001000000000000200000000000003fe000"),
            Request("21e41c71000800070000000000000001000000000000400000000000003fc000"),
            Request("21e41c71000800070000000000000001000000000001000000000000003f0000"),
        ])

    static let libnbd = RecordedClient(
        name: "libnbd 1.22.2",
        handshake: [
            "00000003",
            "49484156454f50540000000b00000000",
            "49484156454f50540000000a00000038000000046469736b000000020000000f62617365"
                + "3a616c6c6f636174696f6e0000001571656d753a64697274792d6269746d61703a6d6f6e",
            "49484156454f5054000000070000000c000000046469736b00010003",
        ],
        requests: [
            Request(
                "21e41c7100200001000000000000000100000000000020000000000000001000", payload: 0xab,
                4096),
            Request(
                "21e41c7100210001000000000000000200000000000030000000000000000200", payload: 0xcd,
                512),
            Request("21e41c7100000000000000000000000300000000000020000000000000001000"),
            Request("21e41c7100000004000000000000000400000000000100000000000000010000"),
            Request("21e41c7100000006000000000000000500000000000200000000000000010000"),
            Request("21e41c7100000003000000000000000600000000000000000000000000000000"),
            Request("21e41c7100000005000000000000000700000000000000000000000000001000"),
            Request("21e41c7100000007000000000000000800000000000000000000000000400000"),
            Request(
                "21e41c710020000700000000000000090000000000000000000000000000000c",
                payload: "000000000010000000000002"),
            Request("21e41c7100000002000000000000000a00000000000000000000000000000000"),
        ])
}

/// The bytes that hexadecimal digits name.
private func bytes(_ digits: String) -> [UInt8] {
    let values = digits.compactMap(\.hexDigitValue)
    precondition(values.count == digits.count && values.count % 2 == 0, "two digits to a byte")
    return stride(from: 0, to: values.count, by: 2).map { UInt8(values[$0] << 4 | values[$0 + 1]) }
}
