internal import BlockModel
package import ControlDocuments
internal import ExportBlock
internal import Glibc
internal import Host
internal import Logging

// How block devices go: by a detach that is refused while anybody uses them, or, with
// `losesWrites`, from under their users.

extension BlockRegistry {
    /// Takes a block device away: `loopN`, `/dev/loopN`, its link, or its name. Refused as busy
    /// while it is in use, unless `losesWrites`.
    package func detach(_ name: String, losesWrites: Bool) async throws -> BlockDocument {
        guard let (number, entry) = find(name) else {
            throw ControlError(
                .noSuchBlock,
                "block device \(name) was not found; `stillpoint block list` shows them")
        }
        let last = document(of: entry)
        do {
            try await detach(number, entry)
        } catch let error as ControlError {
            guard losesWrites, error.code == .busy, entries[number] === entry else {
                throw await named(error, entry)
            }
            let reason = await named(error, entry)
            logger.warning("\(reason); its I/O fails from now on")
            await cutOffNow(number, entry)
        }
        try await forget(entry)
        return last
    }

    private func find(_ name: String) -> (UInt64, Entry)? {
        let path = name.hasPrefix("/") ? name : "/dev/" + name
        let found =
            entries.first { $0.value.export?.path == path }
            ?? entries.first { $0.value.link == name }
            ?? entries.first { $0.value.link != nil && $0.value.target == name }
        return found.map { ($0.key, $0.value) }
    }

    /// Detaches a block device that nobody uses; busy when somebody does.
    func detach(_ number: UInt64, _ entry: Entry) async throws {
        guard let export = entry.export, !entry.isBusy else {
            throw ControlError(
                .busy,
                "block device \(entry.target) is being attached or detached; try again in "
                    + "a moment")
        }
        entry.isBusy = true
        let fault: Fault?
        do throws(BlockExportError) {
            fault = try await export.detach()
        } catch {
            release(entry)
            throw ControlError(error)
        }
        await gone(number)
        if let fault {
            throw ControlError(
                .failed,
                "block device \(export.path) is detached, but its last flush failed "
                    + "(\(errnoText(fault.errnoValue))): what was not flushed may be lost")
        }
    }

    /// A refusal that names the users of the device, where they can be seen.
    private func named(_ error: ControlError, _ entry: Entry) async -> ControlError {
        guard error.code == .busy, let path = entry.export?.path,
            let users = await users(of: [entry])[path], !users.isEmpty
        else { return error }
        return inUse(entry, users)
    }

    private func inUse(_ entry: Entry, _ users: [String]) -> ControlError {
        let list = users.joined(separator: ", ")
        let path = entry.link ?? entry.export?.path ?? entry.target
        return ControlError(
            .inUse,
            "block device \(path) (\(entry.export?.path ?? "")) of \(entry.target) is in use: \(list); "
                + "end that first, or lose what is not yet written with --force-lose-writes",
            details: ["users": list])
    }

    /// Makes way for the detach of a device: its block devices make it busy, unless `isForced`:
    /// then they are detached, and refused as busy while they are in use unless `losesWrites`.
    package func clear(device name: String, isForced: Bool, losesWrites: Bool) async throws {
        guard let device = ObjectName(name) else { return }
        let mine = entries.filter { $0.value.device == device }
        if !isForced && !losesWrites {
            // Images make it busy too; that is reported with their snapshot.
            let paths = mine.values.filter(\.isDevice).map {
                $0.link ?? $0.export?.path ?? "being attached"
            }
            guard !paths.isEmpty else { return }
            let list = paths.sorted().joined(separator: ", ")
            throw ControlError(
                .inUse,
                "device \(name) is attached as block device \(list); detach that first "
                    + "(stillpoint block detach), or detach with --force",
                details: ["blocks": list])
        }
        try await end(mine, losesWrites: losesWrites)
        for entry in mine.values { try await forget(entry) }
    }

    /// Makes way for the end of a snapshot: the block devices of its images are detached, and
    /// refused as busy while they are in use unless `losesWrites`.
    package func clear(imagesOf label: String, losesWrites: Bool) async throws {
        let mine = entries.filter { $0.value.target == "\($0.value.device)@\(label)" }
        try await end(mine, losesWrites: losesWrites)
    }

    /// All of them, or none where one is seen to be in use.
    private func end(_ mine: [UInt64: Entry], losesWrites: Bool) async throws {
        if !losesWrites {
            let users = await users(of: Array(mine.values))
            for entry in mine.values {
                guard let path = entry.export?.path, let list = users[path], !list.isEmpty else {
                    continue
                }
                throw inUse(entry, list)
            }
        }
        for (number, entry) in mine {
            guard !losesWrites else {
                await end(number, entry)
                continue
            }
            await settled(number, entry)
            guard entries[number] === entry else { continue }
            do {
                try await detach(number, entry)
            } catch let error as ControlError where error.code == .busy {
                throw await named(error, entry)
            }
        }
    }

    /// The snapshot is destroyed: what is left of the block devices of its images goes.
    package func endImages(of label: String) async {
        for (number, entry) in entries where entry.target == "\(entry.device)@\(label)" {
            await end(number, entry)
        }
    }

    /// Waits until nothing is under way on it.
    func settled(_ number: UInt64, _ entry: Entry) async {
        while entry.isBusy {
            guard entries[number] === entry else { return }
            await withCheckedContinuation { entry.waiters.append($0) }
        }
    }

    /// Detaches, or cuts off what is in use. Returns when it is gone.
    func end(_ number: UInt64, _ entry: Entry) async {
        await settled(number, entry)
        guard entries[number] === entry, entry.export != nil else { return }
        do {
            try await detach(number, entry)
        } catch let error as ControlError {
            guard entries[number] === entry else { return logger.warning("\(error)") }
            let reason = await named(error, entry)
            logger.warning("\(reason); its I/O fails from now on")
            await cutOffNow(number, entry)
        } catch { logger.warning("\(error)") }
    }

    private func cutOffNow(_ number: UInt64, _ entry: Entry) async {
        guard let export = entry.export else { return }
        entry.isBusy = true
        await cutOff(export)
        await gone(number)
    }

    // -- what is remembered

    /// The next start does not make it again.
    private func forget(_ entry: Entry) async throws {
        guard entry.remembered != nil else { return }
        try await save()
    }

    /// Records what the next start makes again.
    func save() async throws {
        try await state.save(entries.values.compactMap(\.remembered) + absent, on: blocking)
    }
}
