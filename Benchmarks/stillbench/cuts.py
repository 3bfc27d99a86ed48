"""How long writers wait for a cut, and what a take costs by size of the device."""

import time

from . import servers
from .machine import BLOCK, CHUNK, DEPTH, GIBIBYTE, MEBIBYTE, fill, sparse
from .numbers import percentile


def run(bench):
    """Cuts over 1 to 64 devices, idle and under writers."""
    section = "Cuts"
    print(f"\n== {section} ==")
    counts = [1, 16] if bench.is_quick else [1, 4, 16, 64]
    judged = "16 devices, written to"
    beyond, closed = {}, {}
    with bench.directory("tmpfs") as directory:
        for count in counts:
            origins = {f"d{number}": f"{directory}/d{number}" for number in range(count)}
            for path in origins.values():
                fill(path, 16 * MEBIBYTE)
            with servers.Stillpoint(bench.program, directory, origins) as server:
                for load in ("idle", "written to"):
                    name = f"{count} devices, {load}"
                    cuts = bench.judged_cuts if name == judged else bench.cuts
                    beyond[name], closed[name] = _cut(bench, server, list(origins), load, cuts)
    bench.results.row(
        section, "gates closed beyond the slowest write in the kernel", "ms", beyond,
        higher_is_better=False,
        details={"p99": {n: [percentile(v, 0.99)] for n, v in beyond.items()}})
    bench.results.row(
        section, "gates closed, waiting for writes included", "ms", closed,
        higher_is_better=False,
        details={"p99": {n: [percentile(v, 0.99)] for n, v in closed.items()}})
    values = beyond[judged]
    bench.results.target(
        "16 devices written to: gates closed beyond the writes, median", values, 2, at_least=False,
        unit=" ms", part=0.5)
    bench.results.target(
        "16 devices written to: gates closed beyond the writes, p99", values, 10,
        at_least=False, unit=" ms", part=0.99)


def _cut(bench, server, devices, load, count):
    """Takes and destroys `count` snapshots of all devices; milliseconds."""
    writers = []
    if load == "written to":
        # More writers than cores would measure the scheduler.
        writers = [
            bench.loads.start(
                server.socket, device, "write", "random", depth=DEPTH, seconds=600)
            for device in devices[:4]
        ]
    beyond, closed = [], []
    try:
        for _ in range(count):
            snapshot, _ = server.request(
                "POST", "/v1/snapshots",
                {"devices": devices, "storage": [f"memory:{len(devices) * 8}M"]})
            closed.append(snapshot["cut_microseconds"] / 1000)
            drained = snapshot["drain_microseconds"] / 1000
            beyond.append(max(closed[-1] - drained, 0.001))
            server.request("DELETE", f"/v1/snapshots/{snapshot['id']}")
        if any(writer.poll() is not None for writer in writers):
            raise RuntimeError("a writer ended before the cuts did")
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    return beyond, closed


def run_sizes(bench):
    """Takes of sparse files from 1 GiB to 15 TiB (ext4 holds 16 TiB at most): as the control socket
    answers them, and as a command, most of whose time is the start of a program."""
    section = "Take by size of the device"
    print(f"\n== {section} ==")
    sizes = {"1 GiB": GIBIBYTE, "64 GiB": 64 * GIBIBYTE, "1 TiB": 1 << 40, "15 TiB": 15 << 40}
    take, command, memory, idle = {}, {}, {}, {}
    with bench.directory("disk") as directory:
        for label, size in sizes.items():
            origin = f"{directory}/origin"
            sparse(origin, size)
            take[label], command[label], memory[label] = [], [], []
            with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
                idle[label] = [server.resident_bytes() / MEBIBYTE]
                for _ in range(bench.rounds):
                    before = server.resident_bytes()
                    snapshot, milliseconds = server.request(
                        "POST", "/v1/snapshots", {"devices": ["disk"], "storage": [directory]})
                    take[label].append(milliseconds)
                    memory[label].append(
                        max(server.resident_bytes() - before, 4096) / MEBIBYTE)
                    server.call("snapshot", "destroy", snapshot["id"])
                    begin = time.monotonic()
                    snapshot = server.take(None, ["disk"], directory)
                    command[label].append((time.monotonic() - begin) * 1000)
                    server.call("snapshot", "destroy", snapshot["id"])
    bench.results.row(
        section, "the take, as the control socket answers it", "ms", take, higher_is_better=False)
    bench.results.row(
        section, "the whole `snapshot create` command", "ms", command, higher_is_better=False)
    bench.results.row(
        section, "memory of a take", "MiB", memory, higher_is_better=False)
    bench.results.row(
        section, "memory of an idle service with one device, buffers included", "MiB", idle,
        higher_is_better=False)
    bench.results.target(
        "15 TiB sparse file: the take", take["15 TiB"], 50, at_least=False, unit=" ms")
    # The first take of a service sets up what all others use, whatever the size.
    bench.results.target(
        "15 TiB sparse file: memory of the first take, ratio to that of 1 GiB",
        [max(memory["15 TiB"]) / max(memory["1 GiB"])], 1.1, at_least=False)
    bench.results.target(
        "idle service with one device, buffers included", idle["1 GiB"], 50, at_least=False,
        unit=" MiB")


def run_memory(bench):
    """What the layer of a snapshot keeps in memory: one block of each chunk overwritten, then all, in
    random order; all, one behind the other. The latter is told from the device's second half: what the
    first copies of a service touch once, some 100 KiB, does not grow with what is preserved."""
    section = "Memory of a snapshot's layer"
    print(f"\n== {section} ==")
    size = GIBIBYTE
    chunks, blocks = size // CHUNK, size // BLOCK
    touched, whole = [], {"in order": [], "in random order": []}
    with bench.directory("tmpfs") as directory:
        origin = f"{directory}/origin"
        fill(origin, size)
        # A count, which rounds only confirm.
        for _ in range(1 if bench.is_quick else bench.rounds):
            for order, pattern in (("in order", "sequential"), ("in random order", "shuffled")):
                with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
                    # The plain writes before touch all that does not belong to the layer.
                    bench.loads.first_overwrites(server, "disk", chunks)
                    server.take("held", ["disk"], directory)
                    before = server.anonymous_bytes()
                    counted = size
                    if pattern == "shuffled":
                        bench.loads.first_overwrites(server, "disk", chunks)
                        touched.append((server.anonymous_bytes() - before) / chunks)
                    else:
                        bench.loads.run(
                            server, "disk", "write", pattern, seconds=0, stride=BLOCK,
                            requests=blocks // 2)
                        before = server.anonymous_bytes()
                        counted = size // 2
                    bench.loads.run(
                        server, "disk", "write", pattern, seconds=0, stride=BLOCK,
                        requests=blocks)
                    whole[order].append(
                        (server.anonymous_bytes() - before) / counted * GIBIBYTE / MEBIBYTE)
    bench.results.row(
        section, "one block of each chunk preserved", "bytes per chunk", {"stillpoint": touched},
        higher_is_better=False)
    bench.results.row(
        section, "everything preserved", "MiB per GiB", whole, higher_is_better=False)
    bench.results.target(
        "memory for each touched chunk", touched, 64, at_least=False, unit=" bytes")
    bench.results.target(
        "memory of chunks wholly preserved in order", whole["in order"], 1.5, at_least=False,
        unit=" MiB/GiB")
