internal import ControlDocuments
internal import Hummingbird
internal import HummingbirdCore

// The routes of copies that programs make and tell of.

extension ControlServer {
    func addCopies(to router: Router<ControlContext>) {
        let copies = registries.copies
        router.get("v1/copies") { request, context in
            try await shared(request, context) { Answer(await copies.list()) }
        }
    }

    func addCopyChanges(to router: Router<ControlContext>) {
        let copies = registries.copies
        router.post("v1/copies") { request, _ in
            let document = try await Self.decode(
                CopyBeginDocument.self, keys: CopyBeginDocument.keys, from: request)
            return Answer(try await copies.begin(document), status: .created)
        }
        router.post("v1/copies/{id}") { request, context in
            let document = try await Self.decode(
                CopyProgressDocument.self, keys: CopyProgressDocument.keys, from: request)
            return Answer(
                try await copies.progress(try context.parameters.require("id"), document))
        }
    }
}
