"""What tracking costs: the program against a build of it that marks nothing, and the change map alone."""

import json
import subprocess

from . import servers
from .machine import fill, write_back
from .results import ratios


def run(bench):
    """4 KiB random writes at depth 32, tracking on and off."""
    section = "Change tracking on and off"
    print(f"\n== {section} ==")
    programs = {"tracking on": bench.program, "tracking off": bench.untracked}
    runs = {name: [] for name in programs}
    with bench.directory("tmpfs") as directory:
        origin = f"{directory}/origin"
        fill(origin, bench.memory_bytes)
        # Two per cent lie within the noise of one pair: many short ones tell them apart.
        for turn in range(bench.rounds * 8):
            for name in bench.in_turn(programs, turn):
                write_back()
                with servers.Stillpoint(programs[name], directory, {"disk": origin}) as server:
                    runs[name].append(bench.loads.run(
                        server, "disk", "write", "random", seconds=bench.seconds))
    bench.results.row(
        section, "4 KiB random write, depth 32, tmpfs", "requests/s",
        {name: [run["iops"] for run in values] for name, values in runs.items()},
        details={"server CPU us/request": {
            name: [run["cpu_us"] for run in values] for name, values in runs.items()}})
    bench.results.target(
        "4 KiB random writes, tracking on against off",
        ratios([run["iops"] for run in runs["tracking on"]],
               [run["iops"] for run in runs["tracking off"]]), 0.98)


def run_map(bench):
    """Marks and scans of change maps of several sizes, without I/O."""
    section = "The change map alone"
    print(f"\n== {section} ==")
    outcome = subprocess.run([bench.map_program], capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"{bench.map_program}: {outcome.stderr.strip()}")
    marks = {}
    for line in outcome.stdout.splitlines():
        fact = json.loads(line)
        if "mark_nanoseconds" in fact:
            label = f"{fact['device']}, a cut every {fact['marks_per_cut']:,} marks"
            marks[label] = fact["mark_nanoseconds"]
        else:
            bench.results.row(
                section, "scan of a 1 TiB map in which every second chunk changed", "s",
                {"stillpoint": fact["scan_seconds"]}, higher_is_better=False)
            bench.results.target(
                "scan of a fully scattered 1 TiB map", fact["scan_seconds"], 1, at_least=False,
                unit=" s")
    bench.results.row(
        section, "a mark of a random block", "ns", marks, higher_is_better=False)
    for label, values in marks.items():
        bench.results.target(
            f"a mark of a random block, {label}", values, 20, at_least=False, unit=" ns")
