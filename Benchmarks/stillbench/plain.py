"""Plain NBD without snapshots: Stillpoint beside every peer, on the same file."""

from . import servers
from .machine import BLOCK, CHUNK, MEBIBYTE, drop_caches, fill, write_back
from .results import ratios

# label, operation, pattern, bytes, depth, figure compared
WORKLOADS = [
    ("4 KiB random read, depth 32", "read", "random", BLOCK, 32, "iops"),
    ("4 KiB random write, depth 32", "write", "random", BLOCK, 32, "iops"),
    ("64 KiB sequential read, depth 16", "read", "sequential", CHUNK, 16, "iops"),
    ("1 MiB sequential read, depth 4", "read", "sequential", MEBIBYTE, 4, "iops"),
    ("64 KiB sequential write, depth 16", "write", "sequential", CHUNK, 16, "iops"),
    ("4 KiB random read, depth 1", "read", "random", BLOCK, 1, "mean_us"),
    ("4 KiB random write, depth 1", "write", "random", BLOCK, 1, "mean_us"),
]

# workload, peer, limit of stillpoint / peer: at least for rates, at most for latencies
TARGETS = [
    (0, "nbdkit", 1.0), (0, "qemu-nbd", 3.0), (1, "nbdkit", 1.0), (1, "qemu-nbd", 3.0),
    (2, "nbdkit", 1.0), (5, "nbdkit", 1.1), (6, "nbdkit", 1.1),
]


def run(bench, place):
    """All workloads of all servers. On the disk every run begins with cold caches, and writes end
    with a flush whose time counts: else a page cache would be compared with a disk."""
    is_cold = place == "disk"
    section = f"NBD, no snapshot, {place}"
    with bench.directory(place) as directory:
        image = f"{directory}/disk.img"
        fill(image, bench.origin_bytes(place))
        print(f"\n== {section}, caches {'cold' if is_cold else 'warm'} ==")
        makers = {
            "stillpoint": lambda: servers.Stillpoint(bench.program, directory, {"disk": image}),
            "nbdkit": lambda: servers.nbdkit(image, directory),
            "qemu-nbd": _fastest_qemu_nbd(bench, image, directory, is_cold),
            "qemu-storage-daemon": lambda: servers.qemu_storage_daemon(
                image, directory, direct=is_cold),
            "qemu-storage-daemon with bitmap": lambda: servers.qemu_storage_daemon(
                image, directory, direct=is_cold, bitmap=True),
            # Both keep what is written beside the file: what they offer in place of a snapshot.
            "nbdkit+cow": lambda: servers.nbdkit(image, directory, ["cow"]),
            "nbd-server copy-on-write": lambda: servers.nbd_server(image, directory),
        }
        runs = [{name: [] for name in makers} for _ in WORKLOADS]
        failed = set()
        for turn in range(bench.judged_rounds):
            for names, workloads in _steps(bench, makers, turn):
                for name in names:
                    if name in failed:
                        continue
                    try:
                        _measure(bench, makers[name], name, runs, is_cold, workloads)
                    except RuntimeError as failure:
                        failed.add(name)
                        for by_name in runs:
                            by_name[name] = []
                        bench.results.failure(section, name, str(failure))
        _report(bench, section, place, runs)


def _steps(bench, makers, turn):
    """Who runs what in a round. What a target compares runs one directly after the other, workload by
    workload: a shared machine changes its speed within seconds."""
    judged = ["stillpoint", *dict.fromkeys(peer for _, peer, _ in TARGETS)]
    compared = {index for index, _, _ in TARGETS}
    for index in range(len(WORKLOADS)):
        if turn < bench.rounds or index in compared:
            yield bench.in_turn(judged, turn), [index]
    if turn < bench.rounds:
        others = [name for name in makers if name not in judged]
        yield bench.in_turn(others, turn), range(len(WORKLOADS))


def _measure(bench, make, name, runs, is_cold, workloads):
    """One server, some workloads."""
    write_back()
    with make() as server:
        bench.results.command(name, server.command)
        for index in workloads:
            _, operation, pattern, block, depth, _ = WORKLOADS[index]
            if is_cold:
                drop_caches()
            runs[index][name].append(bench.loads.run(
                server, server.export, operation, pattern, block=block, depth=depth,
                seconds=bench.seconds))


def _fastest_qemu_nbd(bench, image, directory, is_cold):
    """Tries every mode briefly with both 4 KiB loads; the best product of the two wins."""
    best, best_score = [], 0
    for modes in servers.QEMU_NBD_MODES:
        try:
            with servers.qemu_nbd(image, directory, modes) as server:
                score = 1
                for _, operation, pattern, block, depth, _ in WORKLOADS[:2]:
                    if is_cold:
                        drop_caches()
                    score *= bench.loads.run(
                        server, "disk", operation, pattern, block=block, depth=depth,
                        seconds=0.3)["iops"]
        except RuntimeError:
            # A mode that this place does not offer is not the fastest.
            continue
        if score > best_score:
            best, best_score = modes, score
    return lambda: servers.qemu_nbd(image, directory, best)


def _report(bench, section, place, runs):
    for index, (label, _, _, block, _, figure) in enumerate(WORKLOADS):
        by_name = runs[index]
        unit = "requests/s" if figure == "iops" else "us mean latency"
        bench.results.row(
            section, f"{label}, {place}", unit,
            {name: [run[figure] for run in values] for name, values in by_name.items()},
            higher_is_better=figure == "iops",
            details={
                "p99 us": {n: [run["p99_us"] for run in v] for n, v in by_name.items()},
                "server CPU us/request": {
                    n: [run["cpu_us"] for run in v] for n, v in by_name.items()},
            })
        for number, peer, limit in TARGETS:
            if number == index and by_name["stillpoint"] and by_name[peer]:
                bench.results.target(
                    f"{place}: {label}, ratio to {peer}",
                    ratios([run[figure] for run in by_name["stillpoint"]],
                           [run[figure] for run in by_name[peer]]),
                    limit, at_least=figure == "iops")
