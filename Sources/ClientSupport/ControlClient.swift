package import ArgumentParser
package import BlockModel
package import ControlDocuments
internal import FoundationEssentials
internal import Host
internal import Glibc
package import NIOCore
package import NIOHTTP1

/// Options of every client command.
package struct ClientOptions: ParsableArguments {
    /// The control socket that the user named; nil: the default one.
    @Option(
        help: "Control socket of the service (or STILLPOINT_CONTROL).", completion: .file())
    package var control: String?

    /// The answer is for a program.
    @Flag(help: "Print one JSON document instead of text for people.")
    package var json = false

    package init() {}

    /// A client of the service they name.
    package func client() throws -> ControlClient {
        let path = try Defaults.absolute(try control ?? Defaults.control())
        try checkSocketPath(path)
        return try ControlClient(path: path)
    }

    /// Prints `document` as JSON, or what `text` makes of it.
    package func show<Document: Encodable>(_ document: Document, text: () -> String) throws {
        guard json else { return FileHandles.output.write(text()) }
        let bytes = try DocumentCoding.encoder(pretty: true).encode(document)
        FileHandles.output.write(String(decoding: bytes, as: UTF8.self) + "\n")
    }
}

/// Speaks to the service over its control socket.
package struct ControlClient {
    /// The control socket, as the user named it.
    package let path: String
    /// By which the HTTP library reaches it: it takes paths of at most `libraryPathByteCountMax`
    /// bytes, the kernel and the service take `socketPathByteCountMax`.
    private let place: String

    private static let libraryPathByteCountMax = 103

    /// Longest wait for an answer: an attach may wait 30 s for the locks of a dying service, a
    /// detach for the requests under way.
    package static let timeLimit = TimeAmount.seconds(300)
    /// Largest answer that is taken.
    static let answerByteCountMax = 64 << 20

    /// A client of the service that listens at `path`.
    package init(path: String) throws(Unreachable) {
        self.path = path
        guard path.utf8.count > Self.libraryPathByteCountMax else {
            place = path
            return
        }
        // A shorter name of the same socket, as long as the process runs.
        let socket = SystemFile.openSocketPlace(path)
        guard socket >= 0 else { throw Unreachable(path, -socket) }
        place = "/proc/self/fd/\(socket)"
    }

    /// Longest wait for a take: its two hooks may each take as long as they may. nil: their limit
    /// is not known here.
    package static func timeLimit(withHooks seconds: UInt64?) -> TimeAmount {
        let limit = min(seconds ?? HookOptions.limitSecondsMax, HookOptions.limitSecondsMax)
        return timeLimit + .seconds(2 * Int64(limit))
    }

    /// Sends a request and returns the document it is answered with.
    package func call<Document: Decodable>(
        _ method: HTTPMethod, _ target: String, body: (any Encodable)? = nil,
        timeLimit: TimeAmount = Self.timeLimit,
        as type: Document.Type = Document.self
    ) async throws -> Document {
        let request = ControlRequest(
            method: method, target: target,
            body: try body.map { Array(try DocumentCoding.encoder().encode($0)) })
        let (status, bytes) = try await exchange(request, timeLimit)
        guard (200..<300).contains(status.code) else { throw refusal(status, bytes) }
        do {
            return try DocumentCoding.decoder().decode(type, from: bytes)
        } catch {
            throw Self.notUnderstood(path)
        }
    }

    /// Asks for a page of changes in the compact form.
    package func changes(
        _ target: String
    ) async throws -> (document: ChangesDocument, ranges: [ByteRange]) {
        let request = ControlRequest(target: target, accept: CompactChanges.mediaType)
        let (status, bytes) = try await exchange(request, Self.timeLimit)
        guard (200..<300).contains(status.code) else { throw refusal(status, bytes) }
        do {
            guard let page = try CompactChanges.decoded(bytes) else {
                throw Self.notUnderstood(path)
            }
            return page
        } catch is DecodingError { throw Self.notUnderstood(path) }
    }

    private static func notUnderstood(_ path: String) -> ControlError {
        ControlError(
            .failed,
            "the service at \(path) answered with something this program does not understand; "
                + "are both of one version?")
    }

    /// Calls `body` with every event of a stream of server-sent events, until it ends.
    package func events(_ target: String, _ body: (EventDocument) throws -> Void) async throws {
        try await reaching { () async throws in
            try await ControlConnection.exchange(
                place, ControlRequest(target: target), timeLimit: nil
            ) { head, answer in
                guard (200..<300).contains(head.status.code) else {
                    let bytes = try await answer.collect(upTo: Self.answerByteCountMax)
                    throw refusal(head.status, Data(bytes.readableBytesView))
                }
                var line: [UInt8] = []
                while let piece = try await answer.next() {
                    for byte in piece.readableBytesView {
                        guard byte == UInt8(ascii: "\n") else {
                            line.append(byte)
                            continue
                        }
                        if line.starts(with: Self.dataField) { try body(try Self.event(line)) }
                        line = []
                    }
                    guard line.count <= Self.answerByteCountMax else {
                        throw Self.notUnderstood(path)
                    }
                }
            }
        }
    }

    private static let dataField = Array("data: ".utf8)

    private static func event(_ line: [UInt8]) throws -> EventDocument {
        try DocumentCoding.decoder().decode(
            EventDocument.self, from: Data(line.dropFirst(dataField.count)))
    }

    private func exchange(
        _ request: ControlRequest, _ timeLimit: TimeAmount
    ) async throws -> (HTTPResponseStatus, Data) {
        try await reaching { () async throws in
            try await ControlConnection.exchange(place, request, timeLimit: timeLimit) {
                head, answer in
                let bytes = try await answer.collect(upTo: Self.answerByteCountMax)
                return (head.status, Data(bytes.readableBytesView))
            }
        }
    }

    /// Calls `body`, and says so when the service cannot be reached.
    private func reaching<Value>(_ body: () async throws -> Value) async throws -> Value {
        do {
            return try await body()
        } catch let error as ControlError {
            throw error
        } catch is DecodingError {
            throw Self.notUnderstood(path)
        } catch ControlConnection.Failure.tooLarge {
            throw Self.notUnderstood(path)
        } catch ControlConnection.Failure.deadlineExceeded {
            throw ControlError(
                .failed,
                "the service at \(path) did not answer in time; its log may say why")
        } catch let error as IOError {
            throw Unreachable(path, error.errnoCode)
        } catch ControlConnection.Failure.ended {
            throw Unreachable(path, "it closed the connection without an answer")
        } catch {
            throw Unreachable(path, "\(error)")
        }
    }

    private func refusal(_ status: HTTPResponseStatus, _ bytes: Data) -> ControlError {
        do {
            return try DocumentCoding.decoder().decode(ErrorDocument.self, from: bytes)
                .controlError
        } catch {
            return ControlError(
                .failed, "the service at \(path) refused without a reason: HTTP \(status.code)")
        }
    }

    /// A segment of a URL that stands for `text`.
    package static func escaped(_ text: String) -> String {
        text.utf8.map { byte in
            let isPlain =
                switch byte {
                case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
                    UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."),
                    UInt8(ascii: "_"), UInt8(ascii: "@"):
                    true
                default: false
                }
            if isPlain { return String(UnicodeScalar(byte)) }
            return "%" + (byte < 16 ? "0" : "") + String(byte, radix: 16, uppercase: true)
        }.joined()
    }
}
