internal import BlockModel
internal import ControlDocuments
internal import FoundationEssentials

// What an alert about backups can be built on: generations, checkpoints, copies, block devices.
// Moments are given as Unix time, as Prometheus wants it: the age is `time()` less that.

extension ServiceMetrics {
    func addGenerations(to text: inout MetricsText) {
        text.family(
            "stillpoint_device_history_continued", .gauge,
            "1 when the history goes on from before the attach, 0 when it began with it or since.")
        for device in devices {
            guard let history = device.document.history else { continue }
            text.sample(
                UInt64(history == "continued" ? 1 : 0), [("device", device.document.name)])
        }
        each(
            &text, "stillpoint_device_change_map_bytes", .gauge,
            "Resident memory of the device's change map."
        ) { $0.activity.mapByteCount }
        each(
            &text, "stillpoint_device_origin_present", .gauge,
            "1 while the origin answers and has its name, 0 when it is gone, replaced or deleted."
        ) { [nil, .present].contains($0.document.originState) ? 1 : 0 }
        let newest = newestCheckpoints.sorted { $0.key < $1.key }
        text.family(
            "stillpoint_device_checkpoint_timestamp_seconds", .gauge,
            "When the newest checkpoint of the device was made, Unix time; absent when it has none."
        )
        for (device, checkpoint) in newest {
            text.sample(checkpoint.madeAtSeconds, [("device", device)])
        }
        text.family(
            "stillpoint_device_changed_bytes", .gauge,
            "Bytes changed since the newest checkpoint, looked up every 30 s at most; absent when "
                + "that is not known and a full backup is due.")
        for (device, checkpoint) in newest {
            guard let byteCount = checkpoint.changedByteCount else { continue }
            text.sample(byteCount, [("device", device)])
        }
    }

    func addCopies(to text: inout MetricsText) {
        text.family(
            "stillpoint_last_copy_timestamp_seconds", .gauge,
            "When the last copy of the device ended, Unix time.")
        for copy in copies {
            guard let ended = copy.endedAt else { continue }
            text.sample(ended.timeIntervalSince1970, [("device", copy.device)])
        }
        text.family(
            "stillpoint_last_copy_bytes", .gauge, "Bytes that the last copy of the device read.")
        for copy in copies { text.sample(copy.copiedBytes, [("device", copy.device)]) }
        text.family(
            "stillpoint_last_copy_success", .gauge,
            "1 when the last copy of the device was finished, 0 when it failed, was interrupted or "
                + "its program ended without a word.")
        for copy in copies {
            text.sample(UInt64(copy.state == "done" ? 1 : 0), [("device", copy.device)])
        }
    }

    func addBlocks(to text: inout MetricsText) {
        text.family("stillpoint_blocks", .gauge, "Local block devices.")
        text.sample(UInt64(blocks.count))
        text.family(
            "stillpoint_block_users", .gauge,
            "Who uses the block device: mounts, swap, LVM, RAID, loop devices, processes.")
        for block in blocks {
            text.sample(UInt64(block.users.count), Self.labels(of: block))
        }
        text.family(
            "stillpoint_block_takeovers", .gauge,
            "How often a service took the block device over from the one before.")
        for block in blocks {
            text.sample(UInt64(block.takeovers), Self.labels(of: block))
        }
    }

    private static func labels(of block: BlockDocument) -> MetricsText.Labels {
        [("block", block.path), ("target", block.target)]
    }
}
