"""This program beside an earlier build of it, by turns: a row is missed when it has got worse."""

from . import blocks, servers
from .loads import fio
from .machine import CHUNK, drop_caches, fill, write_back
from .plain import WORKLOADS
from .results import ratios


def run(bench, place):
    """NBD without a snapshot, first overwrites with one, and the local block device."""
    section = f"This program and the former one, {place}"
    print(f"\n== {section} ==")
    programs = {"stillpoint": bench.program, "former": bench.former}
    with bench.directory(place) as directory:
        image = f"{directory}/disk.img"
        fill(image, bench.origin_bytes(place))
        rows = {}

        def note(label, name, value):
            rows.setdefault(label, {program: [] for program in programs})[name].append(value)

        for turn in range(bench.judged_rounds):
            for workload in WORKLOADS:
                for name in bench.in_turn(programs, turn):
                    note(workload[0], name, _nbd(bench, programs[name], directory, image, place, workload))
            for name in bench.in_turn(programs, turn):
                first, again = _overwrites(bench, programs[name], directory, image)
                note("first overwrite with a snapshot held", name, first)
                note("rewrite of what is preserved", name, again)
            for name in bench.in_turn(programs, turn):
                write_back()
                with blocks.attached(bench, directory, image, programs[name]) as device:
                    for label, pattern in blocks.WORKLOADS:
                        note(f"local block device, {label}", name, fio(device, pattern, bench.seconds)[0]["iops"])
    for label, values in rows.items():
        bench.results.row(section, f"{label}, {place}", "requests/s", values)
        bench.results.target(
            f"{place}: {label}, ratio to the former program",
            ratios(values["stillpoint"], values["former"]), 1.0)


def _nbd(bench, program, directory, image, place, workload):
    _, operation, pattern, block, depth, _ = workload
    write_back()
    with servers.Stillpoint(program, directory, {"disk": image}) as server:
        if place == "disk":
            drop_caches()
        return bench.loads.run(
            server, server.export, operation, pattern, block=block, depth=depth,
            seconds=bench.seconds)["iops"]


def _overwrites(bench, program, directory, image):
    write_back()
    with servers.Stillpoint(program, directory, {"disk": image}) as server:
        count = min(bench.memory_bytes, bench.disk_bytes) // CHUNK
        server.take("held", ["disk"], directory)
        first = bench.loads.first_overwrites(server, "disk", count, 1)["iops"]
        return first, bench.loads.first_overwrites(server, "disk", count, 2)["iops"]
