"""How much an increment transfers for random 4 KiB writes, and how long it takes."""

import json
import subprocess
import time

from . import servers
from .machine import BLOCK, GIBIBYTE, sparse

DEVICE_BYTES = 64 * GIBIBYTE


def run(bench):
    """Bytes an increment transfers for each byte changed: Stillpoint, QEMU's bitmap (64 KiB), and the
    original's rule (blocks of 64 KiB up to 128 GiB), which is computed, not run."""
    section = "Increments, 64 GiB sparse device"
    print(f"\n== {section} ==")
    counts = [1000] if bench.is_quick else [100, 1000, 10000, 100000]
    per_byte, query, copy = {}, {}, {}
    with bench.directory("disk") as directory:
        for count in counts:
            label = f"{count:,} writes"
            sent, asked, copied = _stillpoint(bench, directory, count)
            per_byte[f"stillpoint, {label}"] = [sent / (count * BLOCK)]
            query[f"stillpoint, {label}"] = [asked]
            copy[f"stillpoint, {label}"] = [copied]
            try:
                sent, asked = _qemu(bench, directory, count)
                per_byte[f"QEMU bitmap, {label}"] = [sent / (count * BLOCK)]
                query[f"QEMU bitmap, {label}"] = [asked]
            except (RuntimeError, subprocess.CalledProcessError) as failure:
                bench.results.failure(section, f"QEMU bitmap, {label}", str(failure))
            per_byte[f"blksnap's rule, {label}"] = [_chunks_hit(count) * 65536 / (count * BLOCK)]
            if count == 1000:
                bench.results.target(
                    "1000 random 4 KiB writes to 64 GiB: increment",
                    [per_byte[f"stillpoint, {label}"][0] * count * BLOCK / 2**20], 4.2,
                    at_least=False, unit=" MiB")
    results = bench.results
    results.row(section, "bytes transferred per byte changed", "ratio", per_byte,
                higher_is_better=False)
    results.row(section, "asking what changed", "ms", query, higher_is_better=False)
    results.row(section, "`copy --since`, the whole command", "ms", copy, higher_is_better=False)


def _chunks_hit(count):
    """Expected number of different 64 KiB blocks that `count` random writes hit."""
    blocks = DEVICE_BYTES // 65536
    return blocks * (1 - (1 - 1 / blocks) ** count)


def _write(bench, server, count):
    bench.loads.run(
        server, "disk", "write", "random", seconds=0, stride=BLOCK, requests=count, seed=count)


def _stillpoint(bench, directory, count):
    origin, target = f"{directory}/origin", f"{directory}/copy"
    sparse(origin, DEVICE_BYTES)
    with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
        server.take("base", ["disk"], directory)
        server.call("copy", "disk@base", target)
        server.call("snapshot", "destroy", "base")
        _write(bench, server, count)
        server.take("next", ["disk"], directory)
        begin = time.monotonic()
        changes = server.call("changes", "disk", "--since", "base", "--until", "next")
        asked = (time.monotonic() - begin) * 1000
        begin = time.monotonic()
        server.call("copy", "disk@next", target, "--since", "base")
        copied = (time.monotonic() - begin) * 1000
    subprocess.run(["rm", "-f", origin, target, f"{target}.stillpoint"], check=True)
    return changes["changed_bytes"], asked, copied


def _qemu(bench, directory, count):
    origin = f"{directory}/origin"
    sparse(origin, DEVICE_BYTES)
    with servers.qemu_storage_daemon(origin, directory, direct=True, bitmap=True) as server:
        _write(bench, server, count)
        begin = time.monotonic()
        outcome = subprocess.run(
            ["nbdinfo", "--map=qemu:dirty-bitmap:changes", "--json",
             f"nbd+unix:///disk?socket={server.socket}"],
            capture_output=True, text=True, check=True)
        asked = (time.monotonic() - begin) * 1000
        extents = json.loads(outcome.stdout)
    subprocess.run(["rm", "-f", origin], check=True)
    return sum(extent["length"] for extent in extents if extent["type"] == 1), asked
