internal import ControlDocuments

extension Registries {
    /// What is wrong at this moment.
    func health() async -> HealthDocument {
        var problems: [HealthDocument.Problem] = []
        for device in await devices.listMissing() {
            problems.append(
                .init(
                    code: "device_missing", name: device.name,
                    message: "device \(device.name) could not be attached: \(device.reason)"))
        }
        // A loop that does not answer leaves the counters out.
        for device in await devices.list() where device.counters == nil {
            problems.append(
                .init(
                    code: "device_not_answering", name: device.name,
                    message:
                        "loop \(device.loop), which serves device \(device.name), does not answer"
                ))
        }
        for snapshot in await snapshots.list() where snapshot.state == "corrupted" {
            problems.append(
                .init(
                    code: "snapshot_corrupted", name: snapshot.label,
                    message: "snapshot \(snapshot.label) is corrupted; destroy it and take another")
            )
        }
        return HealthDocument(problems: problems)
    }
}
