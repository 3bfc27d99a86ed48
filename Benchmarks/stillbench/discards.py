"""Discards of a sparse device, with a snapshot held and without."""

import subprocess
import time

from . import servers
from .machine import GIBIBYTE, sparse
from .results import ratios


def run(bench):
    """The whole of a sparse device is discarded through its local block device, as `mkfs` and `fstrim`
    do: nothing of it has to be preserved."""
    section = "Discards of sparse devices"
    print(f"\n== {section} ==")
    sizes = {"64 GiB": 64 * GIBIBYTE, "1 TiB": 1 << 40}
    with bench.directory("disk") as directory:
        for label, size in sizes.items():
            origin = f"{directory}/origin-{size}"
            sparse(origin, size)
            values = {"no snapshot": [], "snapshot held": []}
            with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
                path = server.call("block", "attach", "disk")["path"]
                try:
                    for _ in range(bench.rounds):
                        values["no snapshot"].append(_discard(path))
                        snapshot = server.take(None, ["disk"], directory)
                        values["snapshot held"].append(_discard(path))
                        state = server.call("snapshot", "show", snapshot["id"])["state"]
                        server.call("snapshot", "destroy", snapshot["id"])
                        if state != "held":
                            raise RuntimeError(f"the snapshot is {state} after a discard of {label}")
                finally:
                    server.call("block", "detach", path)
            bench.results.row(
                section, f"blkdiscard of a sparse device of {label}", "ms", values,
                higher_is_better=False)
            if label == "1 TiB":
                bench.results.target(
                    "discard of a sparse 1 TiB device with a snapshot held, ratio to without",
                    ratios(values["snapshot held"], values["no snapshot"]), 2, at_least=False)


def _discard(path):
    """Milliseconds."""
    begin = time.monotonic()
    subprocess.run(["blkdiscard", path], check=True)
    return (time.monotonic() - begin) * 1000
