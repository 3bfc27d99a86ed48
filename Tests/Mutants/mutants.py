#!/usr/bin/env python3
"""Plants bugs, one at a time, and expects the simulator, or unit tests, to find each.

usage: mutants.py SCRATCH [NAME...]

SCRATCH is a package directory of its own, made by Scripts/mutants: its Sources are replaced by a
copy of ours and changed, ours are not. Exit 1 when a planted bug lives: 60 s of simulation, or the
tests of its room.
"""

import pathlib
import shutil
import subprocess
import sys

# name, file, text, replacement
MUTANTS = [
("discard not marked","SnapshotCore/Writes/SnapshotEngine+Writes.swift","        markAndTouch(offset: start, end: end)\n        if record","        if record.pointee.operation != .discard { markAndTouch(offset: start, end: end) }\n        if record"),
("no re-check after origin read","SnapshotCore/Images/SnapshotEngine+ImageReads.swift","            emitReads(index, isFirst: false)\n            if record.pointee.outstanding > 0 { return }","            if record.pointee.outstanding > 0 { return }"),
("merge frees instead of handing over","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","if new.pointee.preserved & bit != 0 {","if new.pointee.preserved & bit != 0 || bit == 2 {"),
("lose last partial block","SnapshotCore/Writes/SnapshotEngine+Writes.swift","(min(end &- start, chunkByteCount) &- 1) / blockByteCount","min(15, max(first, (min(end &- start, chunkByteCount) / blockByteCount + (end % 4096 < 100 ? 0 : 1)) &- 1))"),
("waiters forgotten when orphaned","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","            record.pointee.copying &= ~copies[index].mask\n            wakeWaiters(of: CopyIndex(UInt32(index)))","            record.pointee.copying &= ~copies[index].mask"),
("epoch not advanced","SnapshotCore/SnapshotEngine+Cut.swift","            _ = map.cutMade(isBase: isBase)","            if snapshot != nil || isBase == false { _ = map.cutMade(isBase: isBase) }"),
("short copy read accepted","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","if fault == nil, byteCount < copyLength(copies[index]) {","if fault == nil, byteCount < copyLength(copies[index]), byteCount == 0 {"),
("device dropped from cut","CutCoordination/CutCoordinator.swift","        guard isComplete else { return }\n        deadline = nil","        guard isComplete || device > 0 else { return }\n        for other in 0..<deviceCount { answered[other] = true }\n        deadline = nil"),
("buffer freed before stored","SnapshotCore/StorageQueue/SnapshotEngine+Storage.swift","                layers[note.layer].blockMoved(\n                    Int(note.position), of: note.record, to: BlockPlace(stored: slot))\n                buffers.free(buffer)","                layers[note.layer].blockMoved(\n                    Int(note.position), of: note.record, to: BlockPlace(stored: slot))"),
("failed storage write ignored","SnapshotCore/StorageQueue/SnapshotEngine+Storage.swift","} else if fault != nil {","} else if fault?.errnoValue == 28 {"),
("copies survive the switch","SnapshotCore/SnapshotEngine+Cut.swift","        orphanCopies(of: nil)\n","        \n"),
("no merge on touch","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","        while position < chainCount {\n            guard merge","        while position < chainCount, position < 0 {\n            guard merge"),
("resting slots reused","CopyOnWrite/ExtentTable.swift","        if extent.pointee.readers > 0 {","        if extent.pointee.readers > 1000 {"),
("entry saved after mark","SnapshotCore/Writes/SnapshotEngine+Writes.swift","            if newestLive >= 0 { touchOrGiveUp(chunk) }\n            if !isTrackingLost {\n                map.mark(blockMask(of: chunk, offset: offset, end: end), of: chunk)\n            }","            if !isTrackingLost {\n                map.mark(blockMask(of: chunk, offset: offset, end: end), of: chunk)\n            }\n            if newestLive >= 0 { touchOrGiveUp(chunk) }"),
("checksum ignored","SnapshotCore/Images/SnapshotEngine+ImageReads.swift","                lost = position\n","                lost = nil\n"),
("write does not wait for copies","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","            if copying != 0 {","            if copying.nonzeroBitCount > 2 {"),
("image writers not serialised","SnapshotCore/Images/SnapshotEngine+Images.swift",".overlaps(range)",".overlaps(ByteRange(offset: range.offset, length: min(range.length, 4096)))"),
("saved entry lost in merge","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","savedEntry: old.pointee.savedEntry)","savedEntry: map.entry(of: old.pointee.chunk).rawValue & ~(1 << 16))"),
("acknowledge before flush of drain: gate drained early","SnapshotCore/Writes/SnapshotEngine+Writes.swift","guard isDrainWanted, underWayCount == 0 else","guard isDrainWanted, underWayCount <= 1 else"),
("corrupt only own snapshot","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","                endImageRequests(of: snapshot)\n            }\n        }\n        for _ in 0...position","                endImageRequests(of: snapshot)\n                if index > 0 { break }\n            }\n        }\n        for _ in 0...position"),
("reach not capped at gap","ChangeTracking/ChangeEntry.swift","return epoch &- UInt32(reach) <= base ? blocks : .max","return blocks"),
("short origin write acknowledged","SnapshotCore/Writes/SnapshotEngine+Writes.swift","if fault == nil, byteCount < expected {","if fault == nil, byteCount < expected, byteCount == 0 {"),
    ("mark unknown to older snapshots","SnapshotCore/Writes/SnapshotEngine+Marks.swift","        var position = 0\n        // Giving","        var position = newestLive\n        // Giving"),
    ("mark shows a newer snapshot's entry to an older one","SnapshotCore/Writes/SnapshotEngine+Marks.swift","savedEntry(of: chunk, from: position + 1) ?? map.entry(of: chunk)","map.entry(of: chunk)"),
    ("answer goes on behind where it stopped","SnapshotCore/SnapshotEngine+Queries.swift","result.finish(at: stop * chunkByteCount)","result.finish(at: (stop + 1) * chunkByteCount)"),
    ("deadline ignored","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","if let deadline, deadline <= now {","if let deadline, deadline <= now, newestLive < 0 {"),
    ("snapshot gone while an extent is on its way","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","        guard !sources.isAsking(of: snapshot) else { return }\n","        \n"),
    ("record of another chunk","CopyOnWrite/DifferenceLayer.swift","        recentRecord = index\n","        if recentRecord == ChunkRecord.none { recentRecord = index }\n"),
    ("slots of a small extent counted as of a large one","EngineState/SourceTable.swift","slotCount: record.pointee.slotsPerExtent)","slotCount: ExtentTable.slotsPerExtent)"),
    ("growth that falls short counts for nothing","CopyOnWrite/StorageSpace.swift","        capacity += got\n","        if !run.isShort { capacity += got }\n"),
    ("growth counts what it did not get","CopyOnWrite/GrowthRun.swift","pieceByteCount = piece.byteCount / 2 / extentByteCount * extentByteCount","pieceByteCount = 0; tailByteCount += piece.byteCount"),
    ("a punched extent is granted unreserved","CopyOnWrite/StorageSpace.swift","            holes.append(contentsOf: offsets)\n            capacity -= piece.length","            ready.append(contentsOf: offsets)"),
    ("an extent that could not be erased is granted","CopyOnWrite/StorageSpace.swift","            unclean.append(contentsOf: offsets)\n","            ready.append(contentsOf: offsets)\n"),
    ("erasure put off is forgotten","CopyOnWrite/StorageSpace.swift","        if dirty.isEmpty { dirty = offsets } else { dirty.append(contentsOf: offsets) }\n",""),
    ("a hole of before the cut","SnapshotCore/Writes/SnapshotEngine+Zeroing.swift","if !record.pointee.isUnderWay, record.pointee.scanned.gateCount != gateCount {","if record.pointee.scanned.gateCount > gateCount {"),
    ("a hole reaches into a block of data","SnapshotCore/Writes/SnapshotEngine+Zeroing.swift","end == requestEnd ? end : end / blockByteCount * blockByteCount","(end + 4095) / 4096 * 4096"),
    ("data behind a hole taken for one","SnapshotCore/Writes/SnapshotEngine+Zeroing.swift","            record.pointee.scanned.isHole = false\n            if originReportsHoles","            if originReportsHoles, !record.pointee.scanned.isHole || end - start > 65536"),
    ("one limit for all pieces of a zeroing","SnapshotCore/Writes/SnapshotEngine+Writes.swift","        undelay(index)\n        if record.pointee.operation.isWrite {\n            begin","        if record.pointee.operation.isWrite {\n            undelay(index)\n            begin"),
    ("yielded requests forgotten","SnapshotCore/Writes/SnapshotEngine+Zeroing.swift","            wake(index)\n            left -= 1","            if left > 1 || yielded.isEmpty { wake(index) }\n            left -= 1"),
    ("a write beyond an end that moved","SnapshotCore/Writes/SnapshotEngine+Writes.swift","guard length <= size, offset <= size - length else","guard length <= size, offset <= size else"),
    ("a write that waited while the device shrank","SnapshotCore/Writes/SnapshotEngine+Writes.swift","guard end <= size else","guard end <= size || newestLive < 0 else"),
    ("an image of a lost range lives","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","snapshots[use.snapshot].size > newSize {","snapshots[use.snapshot].size > newSize + 65536 {"),
    ("a grown tail is no change","SnapshotCore/SnapshotEngine+Queries.swift","            if tailStart < end { result.add(from: tailStart, to: end) }\n","            if tailStart + 4096 < end { result.add(from: tailStart, to: end) }\n"),
    ("parked requests forgotten","SnapshotCore/SnapshotEngine+Cut.swift","while let index = requests.pop(&parked) { wakeWrite(index) }","if let index = requests.pop(&parked) { wakeWrite(index) }"),
]

# The same where unit tests have to find it: those of the room, in Tests/<room>Tests.
TESTED_MUTANTS = [
    ("blocks on their way to storage survive their layer","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","        orphanBuffersWriting(of: layer)\n","        \n"),
    ("an image write waits without limit","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","        endOverdueImageWrites()\n","        \n"),
    ("a write that yields waits without limit","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","                delay(index)\n                giveWay","                giveWay"),
    ("a write goes on yielding when its snapshot is gone","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","        while let index = requests.pop(&yielded) { wake(index) }\n","        \n"),
    ("a layer waits for a copy that ended","SnapshotCore/Preserving/SnapshotEngine+Copies.swift","        isFreeingHeldUp = false\n","        \n"),
    ("a layer waits for a storage write that ended","SnapshotCore/StorageQueue/SnapshotEngine+Storage.swift","        isFreeingHeldUp = false\n","        \n"),
    ("a layer that waits spins","SnapshotCore/Preserving/SnapshotEngine+Layers.swift","        isFreeingHeldUp = true\n","        \n"),
    ("an operation that hangs is taken for a new one","RingIO/OperationAges.swift","                current = free\n","                _ = free\n"),
    ("new operations count as hanging","RingIO/OperationAges.swift","hangingCount = count - Int(counts[current])","hangingCount = count"),
    ("a lane takes the threads of others","RingIO/LaneSchedule.swift","state.waiting > 0, state.running < state.threadCount else","state.waiting > 0 else"),
    ("pages of maps come last","RingIO/LaneSchedule.swift","        for lane in BlockingLane.allCases {\n            let state","        for lane in BlockingLane.allCases.reversed() {\n            let state"),
    ("a full lane refuses what is owed","RingIO/LaneSchedule.swift","guard isOwed || lanes","guard lanes"),
    ("a lane that hangs gets no other thread","RingIO/LaneSchedule.swift","running + waiting > threadCount && threadCount < bounds.threadCountMax","false"),
    ("what runs goes on counting as waiting","RingIO/LaneSchedule.swift","            lanes[lane.rawValue].waiting -= 1\n","            if !lane.mayHang { lanes[lane.rawValue].waiting -= 1 }\n"),
    ("what is kept for guarantees is lent","RingIO/PoolShares.swift","let left = free - amount - reserve","let left = free - amount"),
    ("those who give nothing back borrow all","RingIO/PoolShares.swift","if left >= commonFloor || earned == .max","if left >= 0 || earned == .max"),
]

SOURCES = pathlib.Path(__file__).resolve().parents[2] / "Sources"
scratch = pathlib.Path(sys.argv[1])
wanted = sys.argv[2:]
shutil.rmtree(scratch / "Sources", ignore_errors=True)
shutil.copytree(SOURCES, scratch / "Sources")
TESTS = SOURCES.parent / "Tests"
shutil.copytree(TESTS / "Support" / "Simulation", scratch / "Sources" / "Simulation")
shutil.copytree(TESTS / "Programs" / "simulate", scratch / "Sources" / "simulate")
shutil.rmtree(scratch / "Tests", ignore_errors=True)
for tests in ["RingIOTests", "SnapshotCoreTests"]:
    shutil.copytree(TESTS / tests, scratch / "Tests" / tests)


def simulate(file):
    """What the simulator makes of the copy as it is: found, LIVES or STALE, and why."""
    build = subprocess.run(
        ["swift", "build", "-c", "release", "--product", "simulate"],
        cwd=scratch, capture_output=True, text=True)
    if build.returncode:
        return "STALE", "does not build"
    for seed in range(1, 61, 6):
        run = subprocess.run(
            [".build/release/simulate", "--seconds", "6", "--first-seed", str(seed * 1000)],
            cwd=scratch, capture_output=True, text=True)
        if run.returncode:
            lines = [line for line in run.stdout.splitlines() if "violation" in line]
            return "found", lines[0] if lines else "trap"
    return "LIVES", "60 s of simulation"


def test(file):
    """What the unit tests of the room make of it."""
    build = subprocess.run(
        ["swift", "build", "--build-tests"], cwd=scratch, capture_output=True, text=True)
    if build.returncode:
        return "STALE", "does not build"
    try:
        run = subprocess.run(
            ["swift", "test", "--skip-build", "--filter", file.split("/")[0] + "Tests"],
            cwd=scratch, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "found", "a test hangs"
    failed = [line for line in run.stdout.splitlines() if "recorded an issue" in line]
    return ("found", failed[0] if failed else "trap") if run.returncode else ("LIVES", "all tests")


missed = 0
total = 0
planted = [(*mutant, simulate) for mutant in MUTANTS] + [(*mutant, test) for mutant in TESTED_MUTANTS]
for name, file, text, replacement, find in planted:
    if wanted and not any(word in name for word in wanted):
        continue
    total += 1
    path = scratch / "Sources" / file
    original = path.read_text()
    if text not in original:
        print(f"STALE   {name}: its text is no longer in {file}", flush=True)
        missed += 1
        continue
    path.write_text(original.replace(text, replacement, 1))
    outcome, why = find(file)
    if outcome != "found":
        missed += 1
    print(f"{outcome:7} {name}: {why}", flush=True)
    path.write_text(original)
print(f"{total - missed} of {total} planted bugs found")
sys.exit(1 if missed else 0)
