"""Overwriting with a snapshot held: what copying costs, beside QEMU's copy-before-write."""

import os
import subprocess

from . import servers
from .machine import BLOCK, CHUNK, MEBIBYTE, fill, write_back
from .results import middle, ratios

# Sweeps over all chunks in one process, a second or less each: their middle is the run.
_SWEEPS = 3


def run(bench, place):
    """First overwrite of every chunk, uniform and zipfian overwrites, rewrites of what is preserved."""
    section = f"Overwriting with a snapshot held, {place}"
    print(f"\n== {section} ==")
    with bench.directory(place) as directory:
        origin = f"{directory}/origin"
        size = bench.origin_bytes(place)
        fill(origin, size)
        count = size // CHUNK
        mode = _best_mode(bench, directory, origin, min(count, 4096))
        storages = {"storage file": directory}
        if place == "tmpfs":
            # Each 4 KiB needs a place for itself, and twice that for uniform overwrites of half.
            storages["storage memory"] = f"memory:{size}"
        loads = {
            "first overwrite of every chunk, 4 KiB each": lambda server, export, seed:
                bench.loads.first_overwrites(server, export, count, seed),
            "uniform random 4 KiB overwrite": lambda server, export, seed: bench.loads.run(
                server, export, "write", "random", seconds=0, seed=seed, stride=BLOCK,
                requests=count),
            "zipfian 4 KiB overwrite": lambda server, export, seed: bench.loads.run(
                server, export, "write", "zipfian", seconds=0, seed=seed, stride=BLOCK,
                requests=count),
        }
        for label, load in loads.items():
            _compare(bench, section, place, directory, origin, storages, mode, label, load)
        os.unlink(origin)


def _compare(bench, section, place, directory, origin, storages, mode, label, load):
    names = ["no snapshot", *storages, "QEMU copy-before-write"]
    first = {name: [] for name in names}
    again = {name: [] for name in names}
    copied = []
    is_first_overwrite = label.startswith("first")
    for turn in range(bench.judged_rounds if is_first_overwrite else bench.rounds):
        for name in bench.in_turn(names, turn):
            write_back()
            if name == "QEMU copy-before-write":
                if mode:
                    with servers.copy_before_write(origin, directory, mode) as server:
                        first[name].append(load(server, "disk", 1))
                    os.unlink(f"{directory}/qemu-target")
                continue
            with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
                once, anew = [], []
                for sweep in range(_SWEEPS if is_first_overwrite else 1):
                    if name in storages:
                        if sweep:
                            server.call("snapshot", "destroy", f"held{sweep - 1}")
                        server.take(f"held{sweep}", ["disk"], storages[name])
                        write_back()
                    before = server.call("device", "show", "disk")["counters"]["copied_bytes"]
                    once.append(load(server, "disk", 2 * sweep + 1))
                    if name in storages:
                        copied.append(_copied(
                            server, f"held{sweep}", before, once[-1]["requests"]))
                    # The same places once more, in another order.
                    write_back()
                    anew.append(load(server, "disk", 2 * sweep + 2 if is_first_overwrite else 1))
                first[name].append(middle(once))
                again[name].append(middle(anew))
    _report(bench, section, place, storages, label, first, again)
    if is_first_overwrite:
        for key in ("copied", "stored"):
            bench.results.target(
                f"{place}: {key} bytes per overwritten byte", [entry[key] for entry in copied],
                1.0, at_least=False)


def _copied(server, snapshot, before, requests):
    shown = server.call("snapshot", "show", snapshot)
    device = server.call("device", "show", "disk")
    if shown["state"] != "held":
        raise RuntimeError(f"the snapshot was lost: {shown}")
    return {
        "copied": (device["counters"]["copied_bytes"] - before) / (requests * BLOCK),
        "stored": shown["storage"]["stored_bytes"] / (requests * BLOCK),
    }


def _report(bench, section, place, storages, label, first, again):
    results = bench.results
    for title, runs in ((label, first), (f"{label}: rewrite of what is preserved", again)):
        results.row(
            section, f"{title}, {place}", "requests/s",
            {name: [run["iops"] for run in values] for name, values in runs.items()},
            details={
                "p99 us": {n: [run["p99_us"] for run in v] for n, v in runs.items()},
                "server CPU us/request": {
                    n: [run["cpu_us"] for run in v] for n, v in runs.items()},
            })
    if not label.startswith("first"):
        return
    plain, qemu = first["no snapshot"], first["QEMU copy-before-write"]

    def ratio(ours, theirs, key="iops"):
        return ratios([run[key] for run in ours], [run[key] for run in theirs])

    for name in storages:
        what = f"{place}, {name}"
        results.target(
            f"{what}: first overwrite of every chunk, ratio to plain writes",
            ratio(first[name], plain), 0.5 if place == "tmpfs" else 0.4)
        results.target(
            f"{what}: its p99 latency, ratio to plain writes",
            ratio(first[name], plain, "p99_us"), 4.0, at_least=False)
        results.target(
            f"{what}: rewrite of preserved blocks, ratio to plain writes",
            ratio(again[name], again["no snapshot"]), 0.95)
        if qemu:
            results.target(
                f"{what}: first overwrite of every chunk, ratio to QEMU",
                ratio(first[name], qemu), 8.0)


def _best_mode(bench, directory, origin, part):
    """The fastest way QEMU does the same here, found with a part of the work."""
    best, best_rate = None, 0
    for mode in servers.COPY_BEFORE_WRITE_MODES:
        try:
            with servers.copy_before_write(origin, directory, mode) as server:
                rate = bench.loads.first_overwrites(server, "disk", part)["iops"]
        except (RuntimeError, subprocess.CalledProcessError) as failure:
            bench.results.failure(
                "QEMU copy-before-write", f"target {mode[0]}, cache.direct={mode[1]}, "
                f"aio={mode[2]}", str(failure))
            continue
        if rate > best_rate:
            best, best_rate = mode, rate
    if best:
        bench.results.command(
            f"QEMU copy-before-write ({best[0]} target)",
            servers.copy_before_write(origin, directory, best).command)
        if os.path.exists(f"{directory}/qemu-target"):
            os.unlink(f"{directory}/qemu-target")
    return best


def run_many(bench):
    """1, 2, 4 and 8 snapshots held on one device: a write copies into the newest layer only."""
    section = "Snapshots held on one device"
    print(f"\n== {section} ==")
    counts = [1, 2, 4, 8]
    with bench.directory("tmpfs") as directory:
        origin = f"{directory}/origin"
        fill(origin, bench.memory_bytes)
        chunks = bench.memory_bytes // CHUNK
        runs = {held: [] for held in counts}
        judged = {1, 8}
        # A start measures a tenth of a second only, so there are many.
        for turn in range(bench.judged_rounds * 3):
            for held in bench.in_turn(counts, turn):
                if turn >= bench.rounds and held not in judged:
                    continue
                with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
                    for number in range(held):
                        server.take(f"held{number}", ["disk"], directory)
                        if number < held - 1:
                            # Older layers have something in them.
                            bench.loads.first_overwrites(
                                server, "disk", min(chunks, 1024), seed=number + 10)
                    runs[held].append(bench.loads.first_overwrites(server, "disk", chunks))
        bench.results.row(
            section, "first overwrite of every chunk, tmpfs", "requests/s",
            {f"{held} held": [run["iops"] for run in values] for held, values in runs.items()},
            details={"server CPU us/request": {
                f"{held} held": [run["cpu_us"] for run in values]
                for held, values in runs.items()}})
        bench.results.target(
            "8 snapshots held, write rate against 1",
            ratios([run["iops"] for run in runs[8]], [run["iops"] for run in runs[1]]), 0.95)
