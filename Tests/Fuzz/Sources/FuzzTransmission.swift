import Glibc
import NBDWire

@testable import ExportNBD

/// A proper handshake, then requests that are proper, or nearly, or not at all. The connection
/// ends when the client's side does; what comes back is a sequence of well-formed replies.
func fuzzTransmission(_ input: inout FuzzInput) {
    let kind = input.byte()
    let mode: NBDReplyMode = [.simple, .structured, .extended][Int(kind % 3)]
    let export = kind & 0x40 != 0 ? "secretdisk@monday" : "disk"
    var bytes: [UInt8] = [0, 0, 0, 3]
    if mode == .structured { bytes += option(8, []) }
    if mode == .extended { bytes += option(11, []) }
    if mode != .simple, kind & 0x80 != 0 {
        bytes += option(10, name(export) + [0, 0, 0, 1] + name("base:allocation"))
    }
    bytes += option(7, name(export) + [0, 0])
    let handshakeByteCount = bytes.count
    while !input.isEmpty, bytes.count < handshakeByteCount + (1 << 20) {
        bytes += request(&input, mode)
    }
    let descriptor = FuzzServer.shared.connect()
    let answer = exchange(descriptor, bytes)
    close(descriptor)
    check(answer, mode)
    FuzzServer.shared.waitUntilIdle()
}

private func name(_ text: String) -> [UInt8] { big(UInt32(text.utf8.count)) + text.utf8 }

private func big<Value: FixedWidthInteger>(_ value: Value) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
}

private func option(_ number: UInt32, _ data: [UInt8]) -> [UInt8] {
    big(NBD.optionMagic) + big(number) + big(UInt32(data.count)) + data
}

private func request(_ input: inout FuzzInput, _ mode: NBDReplyMode) -> [UInt8] {
    let kind = input.byte()
    if kind == 255 { return input.take(Int(input.byte())) }
    let command = UInt16(kind % 10)
    let flags = UInt16(kind >> 4 & 7 == 7 ? input.byte() : kind >> 4 & 1)
    let size = UInt64(FuzzServer.byteCount)
    let offset: UInt64 =
        switch input.byte() {
        case let small where small < 128: UInt64(small) * 4096
        case 128: size
        case 129: size - 1
        case 130: .max
        case 131: .max - 4095
        case 132: 1 << 32
        default: input.integer()
        }
    let length: UInt64 =
        switch input.byte() {
        case let small where small < 64: UInt64(small) * 512
        case let odd where odd < 128: UInt64(odd) * 37
        case 128: size
        case 129: UInt64(UInt32.max)
        case 130: 32 << 20
        case 131: (32 << 20) + 1
        case 132: 1 << 40
        case 133: .max
        default: UInt64(input.integer() as UInt32)
        }
    var bytes = mode == .extended ? big(NBD.extendedRequestMagic) : big(NBD.requestMagic)
    let isWrite = command == NBD.Command.write.rawValue
    let payloadFlag = mode == .extended && isWrite ? NBD.CommandFlag.payloadLength : 0
    bytes += big(flags | payloadFlag) + big(command) + big(UInt64(kind) << 8 | UInt64(command))
    bytes += big(offset)
    bytes += mode == .extended ? big(length) : big(UInt32(truncatingIfNeeded: length))
    if isWrite {
        let payload = mode == .extended ? length : UInt64(UInt32(truncatingIfNeeded: length))
        // A long one stops halfway.
        bytes += [UInt8](repeating: kind, count: Int(min(payload, 65536)))
    }
    return bytes
}

/// Sends and receives until the server closes, both at once.
private func exchange(_ descriptor: Int32, _ bytes: [UInt8]) -> [UInt8] {
    var sent = 0
    var answer: [UInt8] = []
    var piece = [UInt8](repeating: 0, count: 262_144)
    fcntl(descriptor, F_SETFL, O_NONBLOCK)
    while true {
        var entry = pollfd(
            fd: descriptor, events: Int16(POLLIN | (sent < bytes.count ? POLLOUT : 0)), revents: 0)
        let ready = poll(&entry, 1, 15_000)
        // libFuzzer looks at the time of an input by a signal.
        if ready < 0, errno == EINTR { continue }
        precondition(ready > 0, "the server neither takes nor gives nor ends")
        if sent < bytes.count, entry.revents & Int16(POLLOUT) != 0 {
            let count = bytes.withUnsafeBytes {
                send(descriptor, $0.baseAddress! + sent, $0.count - sent, Int32(MSG_NOSIGNAL))
            }
            if count > 0 { sent += count } else if errno != EAGAIN { sent = bytes.count }
            if sent == bytes.count { shutdown(descriptor, Int32(SHUT_WR)) }
        }
        if entry.revents & Int16(POLLIN | POLLHUP | POLLERR) != 0 {
            let count = recv(descriptor, &piece, piece.count, 0)
            if count > 0 {
                answer += piece[..<count]
                precondition(answer.count < 256 << 20, "more is answered than was asked")
            } else if count == 0 || errno != EAGAIN {
                return answer
            }
        }
    }
}

/// The replies of structured and extended connections are whole and have their magic; simple
/// replies tell no length, so only the handshake is looked at.
private func check(_ answer: [UInt8], _ mode: NBDReplyMode) {
    precondition(answer.count >= 18, "there is a greeting")
    var position = 18
    func number(_ at: Int, _ count: Int) -> UInt64 {
        answer[at..<at + count].reduce(0) { $0 << 8 | UInt64($1) }
    }
    while position + 20 <= answer.count, number(position, 8) == NBD.optionReplyMagic {
        position += 20 + Int(number(position + 16, 4))
    }
    guard mode != .simple else { return }
    while position < answer.count {
        let header =
            mode == .extended ? NBD.extendedReplyByteCount : NBD.structuredReplyByteCount
        // The server may close in the midst of a reply only when the client broke the protocol.
        guard position + header <= answer.count else { return }
        let magic = mode == .extended ? NBD.extendedReplyMagic : NBD.structuredReplyMagic
        precondition(number(position, 4) == UInt64(magic), "a reply has its magic")
        let length = mode == .extended ? number(position + 24, 8) : number(position + 16, 4)
        precondition(length <= UInt64(NBD.payloadByteCountMax) + 8, "a reply has its bound")
        position += header + Int(length)
    }
}
