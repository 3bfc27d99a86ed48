import Control
import ServiceState
import YAMLReading

extension ConfigurationFile {
    /// The block devices to make: a list of names of devices, or `NAME:` with options of
    /// `block attach`.
    func blocks(_ key: String) -> [RememberedBlock]? {
        guard let node = values[key] else { return nil }
        if let list = node.sequence {
            return list.compactMap { item in
                text(item, of: key).flatMap { block($0, at: item) }
            }
        }
        guard let devices = node.mapping else {
            return text(node, of: key).flatMap { block($0, at: node) }.map { [$0] }
        }
        return devices.compactMap { entry in
            guard let text = text(entry.key, of: key) else { return nil }
            guard let options = entry.value.mapping else {
                if !entry.value.isNull {
                    problem(
                        entry.value, "\(key): give options of \(text) as KEY: VALUE, or none")
                }
                return block(text, at: entry.key)
            }
            return block(text, at: entry.key, options)
        }
    }

    private func block(
        _ name: String, at place: YAMLNode, _ options: [YAMLEntry] = []
    ) -> RememberedBlock? {
        var block = RememberedBlock(device: name)
        for entry in options {
            switch entry.key.text {
            case "partitions": block.partitions = flag(entry.value, of: "partitions") ?? false
            case "read-only": block.readOnly = flag(entry.value, of: "read-only") ?? false
            default:
                problem(
                    entry.key,
                    "block device of \(name): the option \"\(entry.key.text ?? "?")\" is not known; known are "
                        + "partitions, read-only")
            }
        }
        guard !name.isEmpty, !name.contains("@") else {
            problem(place, "block: \"\(name)\": give the name of a device")
            return nil
        }
        return block
    }
}
