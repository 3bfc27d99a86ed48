"""Reading an image nobody overwrote, quiet and under writers of the origin, and a preserved one."""

from . import servers
from .machine import BLOCK, CHUNK, DEPTH, MEBIBYTE, fill, write_back
from .results import ratios

WORKLOADS = [
    ("sequential 64 KiB read, depth 16", "sequential", CHUNK, 16, 0.9),
    ("sequential 1 MiB read, depth 4", "sequential", MEBIBYTE, 4, 0.9),
    ("random 4 KiB read, depth 32", "random", BLOCK, DEPTH, 0.8),
]


def run(bench, place="tmpfs"):
    """Image against origin through the same service; QEMU's snapshot-access beside them."""
    section = f"Reading an image, {place}"
    print(f"\n== {section} ==")
    with bench.directory(place) as directory:
        origin = f"{directory}/origin"
        fill(origin, bench.origin_bytes(place))
        write_back()
        exports = {"origin": "disk", "image": "disk@held", "image under writers": "disk@held"}
        runs = [{name: [] for name in [*exports, "image preserved"]} for _ in WORKLOADS]
        with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
            server.take("held", ["disk"], directory)
            for turn in range(bench.judged_rounds):
                for index in range(len(WORKLOADS)):
                    for name in bench.in_turn(["origin", "image"], turn):
                        runs[index][name].append(_read(bench, server, exports[name], index))
            _under_writers(bench, server, runs)
            chunks = bench.origin_bytes(place) // CHUNK
            # Every block in random order: the worst order that storage can be read in.
            bench.loads.run(
                server, "disk", "write", "shuffled", seconds=0, stride=BLOCK,
                requests=chunks * 16)
            for _ in range(bench.rounds):
                for index in range(len(WORKLOADS)):
                    runs[index]["image preserved"].append(
                        _read(bench, server, "disk@held", index))
        _qemu(bench, section, directory, origin, runs)
        for index, (label, _, _, _, limit) in enumerate(WORKLOADS):
            bench.results.row(
                section, f"{label}, {place}", "requests/s",
                {n: [run["iops"] for run in v] for n, v in runs[index].items()},
                details={"p99 us": {
                    n: [run["p99_us"] for run in v] for n, v in runs[index].items()}})
            bench.results.target(
                f"{place}: image nobody overwrote, {label}, ratio to the origin",
                ratios([run["iops"] for run in runs[index]["image"]],
                       [run["iops"] for run in runs[index]["origin"]]), limit)


def _read(bench, server, export, index):
    _, pattern, block, depth, _ = WORKLOADS[index]
    return bench.loads.run(
        server, export, "read", pattern, block=block, depth=depth, seconds=bench.seconds)


def _under_writers(bench, server, runs):
    """A writer that rewrites a sixteenth of the origin while the image is read."""
    seconds = bench.rounds * len(WORKLOADS) * (bench.seconds + 1) + 5
    writer = bench.loads.start(
        server.socket, "disk", "write", "zipfian", seconds=seconds, depth=8)
    try:
        for _ in range(bench.rounds):
            for index in range(len(WORKLOADS)):
                runs[index]["image under writers"].append(
                    _read(bench, server, "disk@held", index))
    finally:
        writer.kill()
        writer.communicate()


def _qemu(bench, section, directory, origin, runs):
    mode = ("raw", "off", "io_uring")
    try:
        with servers.copy_before_write(origin, directory, mode) as server:
            for _ in range(bench.rounds):
                for index in range(len(WORKLOADS)):
                    runs[index].setdefault("QEMU snapshot-access", []).append(
                        _read(bench, server, "image", index))
    except RuntimeError as failure:
        bench.results.failure(section, "QEMU snapshot-access", str(failure))
