"""The command: which sections run, and where the report goes."""

import argparse
import os
import shutil
import signal
import sys
import time

from . import (
    blocks, copies, cuts, discards, former, images, increments, machine, overwrites, plain, report, tracking)
from .context import Context
from .loads import Loads
from .results import Results

SECTIONS = {
    "plain": [lambda bench: plain.run(bench, "tmpfs"), lambda bench: plain.run(bench, "disk")],
    "tracking": [tracking.run],
    "map": [tracking.run_map],
    "overwrites": [
        lambda bench: overwrites.run(bench, "tmpfs"), lambda bench: overwrites.run(bench, "disk")],
    "many": [overwrites.run_many],
    "images": [lambda bench: images.run(bench, "tmpfs"), lambda bench: images.run(bench, "disk")],
    "cuts": [cuts.run],
    "sizes": [cuts.run_sizes],
    "memory": [cuts.run_memory],
    "discards": [discards.run],
    "increments": [increments.run],
    "copies": [lambda bench: copies.run(bench, "tmpfs"), lambda bench: copies.run(bench, "disk")],
    "blocks": [lambda bench: blocks.run(bench, "tmpfs"), lambda bench: blocks.run(bench, "disk")],
    "former": [lambda bench: former.run(bench, "tmpfs"), lambda bench: former.run(bench, "disk")],
}
TOOLS = ["fio", "nbdkit", "nbd-server", "qemu-nbd", "qemu-storage-daemon", "qemu-img", "nbdinfo", "nbdcopy"]


def main():
    parser = argparse.ArgumentParser(prog="bench", description="Measures Stillpoint beside its peers.")
    parser.add_argument("stillpoint", help="the program; nbd-load and bench-tracking lie beside it")
    parser.add_argument("--untracked", help="a build of the program that marks nothing")
    parser.add_argument("--former", help="an earlier build of the program, for the section of that name")
    parser.add_argument("--quick", action="store_true", help="3 pairs of short runs")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--tmpfs", default="/dev/shm", help="a directory in memory")
    parser.add_argument("--disk", default="/var/tmp", help="a directory on the disk")
    parser.add_argument("--report", default="bench-report/report", help="the report without its extension")
    arguments = parser.parse_args()
    for tool in TOOLS:
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing; `make bench` installs what the benchmark needs")
    program = os.path.abspath(arguments.stillpoint)
    load, map_program = (
        os.path.join(os.path.dirname(program), name) for name in ("nbd-load", "bench-tracking"))
    for tool in (load, map_program):
        if not os.access(tool, os.X_OK):
            raise SystemExit(f"{tool} is not built; `make bench` builds it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = arguments.only.split(",")
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        raise SystemExit(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    results = Results()
    facts = machine.describe(program)
    bench = Context(
        program, Loads(load, results), results, arguments.quick, arguments.tmpfs, arguments.disk,
        map_program, arguments.untracked and os.path.abspath(arguments.untracked),
        arguments.former and os.path.abspath(arguments.former))
    begin = time.monotonic()
    for name in wanted:
        if name == "tracking" and not bench.untracked:
            results.failure(name, "tracking off", "no --untracked build was given")
            continue
        if name == "former" and not bench.former:
            continue
        # The short form has no time for these on the disk too.
        is_partial = bench.is_quick and name in ("images", "blocks")
        for section in SECTIONS[name][:1] if is_partial else SECTIONS[name]:
            try:
                section(bench)
            except RuntimeError as failure:
                results.failure(name, "stillpoint", str(failure))
        print(f"[{name} done after {time.monotonic() - begin:.0f} s]", flush=True)
    command = "make bench" + (" QUICK=1" if arguments.quick else "")
    os.makedirs(os.path.dirname(os.path.abspath(arguments.report)), exist_ok=True)
    paths = report.write(results, facts, command, arguments.report)
    print("\nTargets:")
    for entry in results.targets:
        print(f"  {entry['verdict']:9} {results.sentence(entry)}")
    print("Report: " + ", ".join(paths))


if __name__ == "__main__":
    main()
