"""The local block device: /dev/loopN over FUSE, beside QEMU's FUSE export and the raw loop device."""

import contextlib
import functools
import os
import signal
import subprocess
import time

from . import servers
from .loads import fio
from .machine import fill, write_back
from .results import ratios

WORKLOADS = [("4 KiB random read, depth 32", "randread"),
             ("4 KiB random write, depth 32", "randwrite")]


def run(bench, place="tmpfs"):
    """fio with direct I/O through the loop device of each.

    On the disk QEMU's export reaches the file past the page cache, as ours does; what it does through
    the page cache, where writes do not wait for the disk, is beside it.
    """
    section = f"Local block device, {place}"
    print(f"\n== {section} ==")
    with bench.directory(place) as directory:
        image = f"{directory}/disk.img"
        fill(image, bench.origin_bytes(place))
        contenders = {
            "stillpoint": _stillpoint,
            "QEMU FUSE export + loop": functools.partial(_qemu, direct=place == "disk"),
            "loop device on the file itself": _raw,
        }
        if place == "disk":
            contenders["QEMU FUSE export + loop, page cache"] = functools.partial(
                _qemu, direct=False)
        runs = {label: {name: [] for name in contenders} for label, _ in WORKLOADS}
        failed = set()
        for turn in range(bench.rounds):
            for name in bench.in_turn(contenders, turn):
                if name in failed:
                    continue
                write_back()
                try:
                    with contenders[name](bench, directory, image) as device:
                        for label, pattern in WORKLOADS:
                            outcome, command = fio(device, pattern, bench.seconds)
                            bench.results.command(f"{name}, {pattern}", command)
                            runs[label][name].append(outcome)
                except (RuntimeError, subprocess.CalledProcessError) as failure:
                    failed.add(name)
                    bench.results.failure(section, name, str(failure))
        for label, by_name in runs.items():
            bench.results.row(
                section, f"{label}, {place}", "requests/s",
                {n: [run["iops"] for run in v] for n, v in by_name.items()},
                details={"p99 us": {n: [run["p99_us"] for run in v]
                                    for n, v in by_name.items()}})
            ours, theirs = by_name["stillpoint"], by_name["QEMU FUSE export + loop"]
            if ours and theirs and len(ours) == len(theirs):
                bench.results.target(
                    f"{place}: loop device, {label}, ratio to QEMU's FUSE export",
                    ratios([run["iops"] for run in ours], [run["iops"] for run in theirs]), 1.5)


@contextlib.contextmanager
def attached(bench, directory, image, program):
    """The image as a local block device of the program."""
    with servers.Stillpoint(program, directory, {"disk": image}) as server:
        bench.results.command("stillpoint", server.command)
        path = server.call("block", "attach", "disk")["path"]
        try:
            yield os.path.realpath(path)
        finally:
            server.call("block", "detach", path)


def _stillpoint(bench, directory, image):
    return attached(bench, directory, image, bench.program)


@contextlib.contextmanager
def _loop(path):
    outcome = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", path], capture_output=True, text=True,
        check=False)
    if outcome.returncode:
        raise RuntimeError(f"losetup: {outcome.stderr.strip()}")
    device = outcome.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@contextlib.contextmanager
def _raw(_bench, _directory, image):
    with _loop(image) as device:
        yield device


@contextlib.contextmanager
def _qemu(bench, directory, image, direct):
    mount = f"{directory}/qemu-export"
    with open(mount, "wb"):
        pass
    command = [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=file,node-name=origin,filename={image},aio=io_uring,"
        f"cache.direct={'on' if direct else 'off'}",
        "--export",
        f"type=fuse,id=disk,node-name=origin,mountpoint={mount},writable=on,growable=off",
    ]
    bench.results.command(
        "QEMU FUSE export" + (", past the page cache" if direct else ""), command)
    with open(f"{directory}/qemu-fuse.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while os.path.getsize(mount) == 0:
            if process.poll() is not None or time.monotonic() > deadline:
                with open(f"{directory}/qemu-fuse.log") as log:
                    raise RuntimeError(f"it did not start: {log.read().strip()[-300:]}")
            time.sleep(0.02)
        with _loop(mount) as device:
            yield device
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        os.unlink(mount)
