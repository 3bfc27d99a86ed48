import BlockModel
import CopyPlanning
import Encryption
import FoundationEssentials
import Glibc

@testable import ControlDocuments
@testable import ServiceState

/// What people, scripts and files of state give us: bodies of requests, what is remembered,
/// addresses, sizes, names, keys, records of copies.
func fuzzDocuments(_ input: inout FuzzInput) {
    let kind = input.byte()
    let bytes = input.rest()
    let text = String(decoding: bytes, as: UTF8.self)
    switch kind % 16 {
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
    case 9: _ = try? StorageSelection(texts: [text], limit: nil, isForced: false)
    case 10:
        if let document = decode(CheckpointCreateDocument.self, bytes),
            let request = try? CheckpointRequest(document)
        {
            precondition((1...SnapshotRequest.deviceCountMax).contains(request.devices.count))
            precondition(request.name.text != CheckpointRequest.generationName)
        }
    case 11: _ = decode(ChangesMarkDocument.self, bytes)
    case 12:
        if let document = decode(BlockAttachDocument.self, bytes),
            let target = try? BlockTargetName(document.target)
        {
            precondition(!target.device.contains("@") && !target.device.isEmpty)
        }
    case 13: loadCheckpoints(bytes)
    case 14:
        if let record = CopyRecord.decoded(bytes) {
            precondition(
                (try? record.encoded()).flatMap { CopyRecord.decoded($0) } == record,
                "a record that was read is written so that it is read again")
        }
    default: _ = decode(ChangesDocument.self, bytes)
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
    let path = fuzzPath("state")
    mkdir(path, 0o700)
    return path
}()

private func writeState(_ name: String, _ bytes: [UInt8]) {
    let descriptor = open(stateDirectory + "/" + name, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    precondition(write(descriptor, bytes, bytes.count) == bytes.count || bytes.isEmpty)
    close(descriptor)
}

private func loadCheckpoints(_ bytes: [UInt8]) {
    writeState("checkpoints.json", bytes)
    guard let store = try? CheckpointStore(loading: stateDirectory) else { return }
    for checkpoint in store.all {
        precondition(store.checkpoint(checkpoint.name) == checkpoint)
        for part in checkpoint.parts { precondition(part.base.epoch >= .first) }
    }
}

private func loadState(_ bytes: [UInt8]) {
    writeState("devices.json", bytes)
    guard let state = try? StateDirectory(opening: stateDirectory) else {
        fatalError("the state directory opens")
    }
    _ = try? state.load()
}
