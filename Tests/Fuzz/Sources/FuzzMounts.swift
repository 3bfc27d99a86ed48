import BlockModel
import FreezePlanning

@testable import Freezing

/// A mount table with anything in it, what would be frozen of it, and the list of frozen
/// filesystems. What is read is written and read again; an order of freezing never freezes what
/// another one stands on first.
func fuzzMounts(_ input: inout FuzzInput) {
    let kind = input.byte()
    let bytes = input.rest()
    if kind & 1 != 0 { return listFrozen(bytes) }
    do throws(MountTableFault) {
        let table = try MountTable(parsing: bytes)
        let lineCount = bytes.split(separator: 10).count
        precondition(table.mounts.count == lineCount, "every line is a mount")
        for mount in table.mounts {
            precondition(mount.path.first == UInt8(ascii: "/") && !mount.path.contains(0))
        }
        guard let again = try? MountTable(parsing: text(of: table)) else {
            fatalError("a table that was read is written so that it is read again")
        }
        precondition(again == table, "a table that was read reads the same again")
        plan(table, kind)
    } catch {
        let lineCount = bytes.split(separator: 10, omittingEmptySubsequences: false).count
        precondition((1...lineCount).contains(error.line), "a refusal names a line")
    }
}

/// The table as the kernel would write it, each mount on its line.
private func text(of table: MountTable) -> [UInt8] {
    var text: [UInt8] = []
    var line = 1
    for mount in table.mounts {
        while line < mount.position {
            text.append(10)
            line += 1
        }
        text += "\(mount.id) 1 \(mount.device) / ".utf8
        text += escaped(mount.path) + Array(" rw - ".utf8) + escaped(Array(mount.type.utf8))
        text += [32] + escaped(mount.source) + Array(" rw".utf8)
    }
    return text
}

private func escaped(_ bytes: [UInt8]) -> [UInt8] {
    bytes.flatMap { byte -> [UInt8] in
        guard [9, 10, 32, 35, 92].contains(byte) else { return [byte] }
        return [92, 48 + byte / 64, 48 + byte / 8 % 8, 48 + byte % 8]
    }
}

/// What would be frozen when filesystems stand on earlier ones, as `kind` has it.
private func plan(_ table: MountTable, _ kind: UInt8) {
    var filesystems: [MountedFilesystem] = []
    for mount in table.mounts.prefix(200) {
        if let place = filesystems.firstIndex(where: { $0.device == mount.device }) {
            filesystems[place].mounts.append(mount)
            continue
        }
        var foundations: Set<DeviceNumber> = []
        if !filesystems.isEmpty, kind & 2 != 0 {
            let below = filesystems[Int(kind) * filesystems.count / 256]
            foundations = below.foundations.union([below.device])
        }
        filesystems.append(
            MountedFilesystem(device: mount.device, mounts: [mount], foundations: foundations))
    }
    let ours = Set(filesystems.prefix(Int(kind >> 4)).map(\.device))
    let named = filesystems.last?.mounts.last.map { [$0.name] } ?? []
    guard
        let plan = try? FreezePlan(
            FreezeSelection(isAutomatic: kind & 4 != 0, mountPoints: kind & 8 != 0 ? named : []),
            filesystems: filesystems, blockDevices: [ours], protected: [])
    else { return }
    precondition(plan.targets.count <= FreezePlan.targetCountMax)
    precondition(Set(plan.targets.map(\.device)).count == plan.targets.count, "each once")
    for (place, target) in plan.targets.enumerated() {
        let filesystem = filesystems.first { $0.device == target.device }
        for earlier in plan.targets[..<place] {
            precondition(
                !filesystem!.foundations.contains(earlier.device),
                "what stands on another one is frozen before it")
        }
    }
}

private func listFrozen(_ bytes: [UInt8]) {
    let mountPoints = FrozenFilesystems.mountPoints(in: bytes)
    let text = FrozenFilesystems.text(of: mountPoints)
    precondition(FrozenFilesystems.mountPoints(in: text) == mountPoints, "a list reads the same")
    let odd = bytes.split(separator: 0).map { Array($0) }
    precondition(
        FrozenFilesystems.mountPoints(in: FrozenFilesystems.text(of: odd)) == odd,
        "any mount point is listed as it is")
}
