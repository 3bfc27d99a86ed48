"""What tracking costs: the program against a build of it that marks nothing, and the change map alone."""

import contextlib
import json
import os
import statistics
import subprocess

from . import servers
from .machine import fill, write_back
from .results import ratios


# Runs of each program while both are up.
_SLICES = 12


def run(bench):
    """4 KiB random writes at depth 32, tracking on and off.

    Two per cent lie within the noise of runs that are seconds apart. So both programs are up at once and
    the load goes from one to the other in short slices; what is judged is the median of a start's
    ratios, one value a start, since slices of one process share its memory's layout. The origins
    change sides with each start: they have a layout too.
    """
    section = "Change tracking on and off"
    print(f"\n== {section} ==")
    programs = {"tracking on": bench.program, "tracking off": bench.untracked}
    runs = {name: [] for name in programs}
    judged = []
    with bench.directory("tmpfs") as directory:
        places = [f"{directory}/{number}" for number in range(len(programs))]
        for place in places:
            os.mkdir(place)
            fill(f"{place}/origin", bench.memory_bytes)
        for start in range(bench.rounds * 6):
            sides = dict(zip(programs, bench.in_turn(places, start)))
            slices = _slices(bench, programs, sides, start // 2)
            judged.append(statistics.median(ratios(
                *([run["iops"] for run in slices[name]] for name in programs))))
            for name in programs:
                runs[name] += slices[name]
    bench.results.row(
        section, "4 KiB random write, depth 32, tmpfs", "requests/s",
        {name: [run["iops"] for run in values] for name, values in runs.items()},
        details={"server CPU us/request": {
            name: [run["cpu_us"] for run in values] for name, values in runs.items()}})
    bench.results.target(
        "4 KiB random writes, tracking on against off", judged, 0.98)


def _slices(bench, programs, places, start):
    """The slices of one start of both programs."""
    slices = {name: [] for name in programs}
    write_back()
    with contextlib.ExitStack() as stack:
        with _processor(0):
            up = {
                name: stack.enter_context(servers.Stillpoint(
                    programs[name], places[name], {"disk": f"{places[name]}/origin"}))
                for name in bench.in_turn(programs, start)
            }
        with _processor(1):
            for turn in range(_SLICES):
                for name in bench.in_turn(programs, start + turn):
                    slices[name].append(bench.loads.run(
                        up[name], "disk", "write", "random", seconds=bench.seconds / 4))
    return slices


@contextlib.contextmanager
def _processor(number):
    """What is started meanwhile stays on the processor of that number, where there are as many: servers
    and client each have their own, and nobody's thread moves."""
    before = os.sched_getaffinity(0)
    mine = sorted(before)[number:number + 1]
    os.sched_setaffinity(0, mine if len(before) > 1 else before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run_map(bench):
    """Marks and scans of change maps of several sizes, without I/O.

    The service fetches the entry of a write from memory while the payload is still to be taken. What is
    judged does so too; marks that wait for memory are beside it. Both without the loop's own time.
    """
    section = "The change map alone"
    print(f"\n== {section} ==")
    outcome = subprocess.run([bench.map_program], capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"{bench.map_program}: {outcome.stderr.strip()}")
    marks, unforeseen = {}, {}
    for line in outcome.stdout.splitlines():
        fact = json.loads(line)
        if "mark_nanoseconds" in fact:
            label = f"{fact['device']}, a cut every {fact['marks_per_cut']:,} marks"
            (marks if fact["foreseen"] else unforeseen)[label] = fact["mark_nanoseconds"]
        else:
            bench.results.row(
                section, "scan of a 1 TiB map in which every second chunk changed", "s",
                {"stillpoint": fact["scan_seconds"]}, higher_is_better=False)
            bench.results.target(
                "scan of a fully scattered 1 TiB map", fact["scan_seconds"], 1, at_least=False,
                unit=" s")
    bench.results.row(
        section, "a mark of a random block", "ns", marks, higher_is_better=False)
    bench.results.row(
        section, "a mark of a random block whose entry was not fetched ahead", "ns", unforeseen,
        higher_is_better=False)
    for label, values in marks.items():
        bench.results.target(
            f"a mark of a random block, {label}", values, 20, at_least=False, unit=" ns")
