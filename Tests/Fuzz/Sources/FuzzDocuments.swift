import BlockModel
import Encryption
import FoundationEssentials
import Glibc

@testable import Control

/// What people, scripts and files of state give us: bodies of requests, the remembered devices,
/// addresses, sizes, names, keys.
func fuzzDocuments(_ input: inout FuzzInput) {
    let kind = input.byte()
    let bytes = input.rest()
    let text = String(decoding: bytes, as: UTF8.self)
    switch kind % 10 {
    case 0:
        _ = decode(AttachDocument.self, bytes)
    case 1:
        if let document = decode(SnapshotCreateDocument.self, bytes),
            let request = try? SnapshotRequest(document)
        {
            precondition((1...SnapshotRequest.deviceCountMax).contains(request.devices.count))
            precondition(Set(request.devices.map(\.description)).count == request.devices.count)
        }
    case 2: _ = decode(StorageAppendDocument.self, bytes)
    case 3: loadState(bytes)
    case 4: _ = decode(SnapshotDocument.self, bytes)
    case 5: _ = decode(EventDocument.self, bytes)
    case 6:
        if let address = try? ListenAddress(parsing: text) {
            precondition(
                (try? ListenAddress(parsing: address.description)) == address,
                "an address that was read is written so that it is read again")
        }
    case 7:
        if let size = parseSize(text) { precondition(size <= UInt64(Int64.max)) }
        if let name = ObjectName(text) {
            precondition(name.description == text && (1...64).contains(text.utf8.count))
        }
        if let id = UniqueID(text) {
            precondition(id.description == text.lowercased(), "an id is written as it was read")
        }
    case 8: _ = try? PreSharedKeys(parsing: bytes, of: "keys")
    default: _ = try? StorageWish(texts: [text], limit: nil, isForced: false)
    }
}

/// Decodes, and decodes what is encoded again.
private func decode<Document: Codable & Equatable>(
    _ type: Document.Type, _ bytes: [UInt8]
) -> Document? {
    guard let document = try? DocumentCoding.decoder().decode(type, from: Data(bytes)) else {
        return nil
    }
    // A document with a number that JSON has no way to write (a date beyond all calendars) ends
    // here.
    guard let again = try? DocumentCoding.encoder().encode(document) else { return nil }
    _ = try? DocumentCoding.decoder().decode(type, from: again)
    return document
}

private let stateDirectory: String = {
    let path = "/tmp/stillpoint-fuzz-state-\(getpid())"
    mkdir(path, 0o700)
    return path
}()

private func loadState(_ bytes: [UInt8]) {
    let descriptor = open(stateDirectory + "/devices.json", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    precondition(write(descriptor, bytes, bytes.count) == bytes.count || bytes.isEmpty)
    close(descriptor)
    guard let state = try? StateDirectory(opening: stateDirectory) else {
        fatalError("the state directory opens")
    }
    _ = try? state.load()
}
