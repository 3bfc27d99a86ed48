"""What marking costs: the program against a build of it that marks nothing."""

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
        for turn in range(bench.rounds * 3):
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
