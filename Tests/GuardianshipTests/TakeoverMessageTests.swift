import BlockModel
import Guardianship
import Testing

/// The words between a service and the guardian of the one before.
@Suite struct `Words of a takeover` {
    @Test(arguments: [
        TakeoverMessage.ask(1...3), .version(2, count: 256), .versions(4...4),
        .device(7, isDrained: true, note: Array("disk (/dev/loop3)\n{\"version\":1}".utf8)),
        .device(1, isDrained: false, note: []), .taken, .accepted,
    ])
    func `are read as they were written`(message: TakeoverMessage) {
        #expect(TakeoverMessage(message.bytes[...]) == message)
    }

    @Test func `leave room for what a later version adds behind them`() {
        let longer = TakeoverMessage.ask(1...2).bytes + Array("\0more".utf8)
        #expect(TakeoverMessage(longer[...]) == .ask(1...2))
        let device = TakeoverMessage.device(7, isDrained: true, note: [65])
        #expect(TakeoverMessage((device.bytes + Array("\0more".utf8))[...]) == device)
    }

    @Test(arguments: [
        "", "hello", "stillpoint-takeover", "stillpoint-takeover\u{0}2\u{0}1", "version\u{0}1",
        "version\u{0}1\u{0}257", "version\u{0}1\u{0}-1", "device\u{0}0\u{0}drained\u{0}x",
        "device\u{0}99999999999999999999\u{0}drained\u{0}x", "device\u{0}1\u{0}drained",
    ])
    func `that make no sense are not taken for any`(text: String) {
        #expect(TakeoverMessage(Array(text.utf8)[...]) == nil)
    }

    @Test(
        arguments: [
            (1...1, 1...1, 1), (1...2, 1...1, 1), (1...3, 2...5, 3), (3...4, 1...3, 3),
            (1...1, 2...2, nil), (5...9, 1...4, nil),
        ] as [(ClosedRange<Int>, ClosedRange<Int>, Int?)])
    func `are those of the newest version that both know`(
        one: ClosedRange<Int>, other: ClosedRange<Int>, common: Int?
    ) {
        #expect(TakeoverMessage.common(one, other) == common)
        #expect(TakeoverMessage.common(other, one) == common)
    }

    @Test(arguments: [
        GuardianMessage.hold(3, isDrained: false, note: Array("a\nb".utf8)),
        .hold(3, isDrained: true, note: []), .setDrained(9, true), .setDrained(9, false),
        .release(4), .adopted, .dismiss,
    ])
    func `to a service's own guardian are read as they were written`(message: GuardianMessage) {
        #expect(GuardianMessage(message.bytes) == message)
    }
}
