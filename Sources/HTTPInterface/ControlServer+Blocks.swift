internal import ControlDocuments
internal import Hummingbird
internal import HummingbirdCore

// The routes of local block devices.

extension ControlServer {
    func addBlocks(to router: Router<ControlContext>) {
        let blocks = registries.blocks
        router.get("v1/blocks") { request, context in
            try await shared(request, context) { Answer(await blocks.list()) }
        }
    }

    func addBlockChanges(to router: Router<ControlContext>) {
        let blocks = registries.blocks
        router.post("v1/blocks") { request, _ in
            let document = try await Self.decode(
                BlockAttachDocument.self, keys: BlockAttachDocument.keys, from: request)
            let made = try await blocks.attach(
                try BlockTargetName(document.target), isReadOnly: document.readOnly ?? false,
                scansPartitions: document.partitions ?? false,
                isTemporary: document.temporary ?? false)
            return Answer(made, status: .created)
        }
        router.delete("v1/blocks/{name}") { request, context in
            // Names of images have an "@", which clients may escape.
            let name = try context.parameters.require("name")
            return Answer(
                try await blocks.detach(
                    name.replacing("%40", with: "@"),
                    losesWrites: try Self.flag("force_lose_writes", of: request)))
        }
    }
}
