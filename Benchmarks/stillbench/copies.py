"""Full copies and increments beside nbdcopy, qemu-img convert and QEMU's blockdev-backup."""

import json
import os
import socket
import subprocess
import time

from . import servers
from .machine import BLOCK, MEBIBYTE, drop_caches, fill, sparse
from .results import ratios

# One data range of this size in every stride of a sparse origin.
SPARSE_STRIDE = 16 * MEBIBYTE
SPARSE_DATA = MEBIBYTE


def run(bench, place="tmpfs"):
    """Copies of an image into a file that is not there yet, and increments of 1 % in blocks of 4 KiB."""
    section = f"Copies, {place}"
    print(f"\n== {section} ==")
    with bench.directory(place) as directory:
        for kind in ("dense", "sparse"):
            _full(bench, section, place, directory, kind)
        _increments(bench, section, place, directory)


def _timed(command):
    """Seconds that a command takes, and the bytes it had resident at most."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    diagnostics = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {diagnostics.decode().strip()}")
    return time.monotonic() - begin, usage.ru_maxrss * 1024


def _origin(path, kind, byte_count):
    if kind == "dense":
        fill(path, byte_count)
        return
    sparse(path, byte_count)
    piece = os.urandom(SPARSE_DATA)
    with open(path, "r+b") as file:
        for offset in range(0, byte_count, SPARSE_STRIDE):
            file.seek(offset)
            file.write(piece)
        os.fsync(file.fileno())


def _full(bench, section, place, directory, kind):
    origin, target = f"{directory}/origin", f"{directory}/target"
    byte_count = bench.origin_bytes(place) * (1 if kind == "dense" else 4)
    _origin(origin, kind, byte_count)
    seconds, memory = {}, {}
    with servers.Stillpoint(bench.program, directory, {"disk": origin}) as server:
        server.take("held", ["disk"], "memory:64M")
        uri = f"nbd+unix:///disk@held?socket={server.socket}"
        # All of them leave the target on stable storage.
        contenders = {
            "stillpoint": [
                bench.program, "copy", "disk@held", target, "--control", server.control],
            "nbdcopy": ["nbdcopy", "--flush", uri, target],
            "qemu-img convert": [
                "qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "writeback", "-m", "16",
                "-W", uri, target],
            "cp": ["sh", "-c", f"cp --sparse=auto {origin} {target} && sync {target}"],
        }
        for turn in range(bench.judged_rounds):
            for name in bench.in_turn(contenders, turn):
                subprocess.run(["rm", "-f", target, f"{target}.stillpoint"], check=True)
                if place == "disk":
                    drop_caches()
                took, resident = _timed(contenders[name])
                seconds.setdefault(name, []).append(took)
                memory.setdefault(name, []).append(resident / MEBIBYTE)
        subprocess.run(["cmp", origin, target], check=True)
    for command in contenders.items():
        bench.results.command(f"{command[0]}, full copy", command[1])
    rates = {
        name: [byte_count / MEBIBYTE / one for one in runs] for name, runs in seconds.items()}
    bench.results.row(
        section, f"full copy, {kind}, {byte_count // MEBIBYTE} MiB", "MiB/s", rates,
        details={"memory MiB": memory})
    bench.results.target(
        f"{place}: full copy, {kind}, ratio to nbdcopy",
        ratios(rates["stillpoint"], rates["nbdcopy"]), 1.0)
    if place == "tmpfs" and kind == "dense":
        bench.results.target(
            f"{place}: full copy, {kind}, ratio to cp", ratios(rates["stillpoint"], rates["cp"]),
            0.5)
    bench.results.target(
        f"{place}: memory of a full copy, {kind}", memory["stillpoint"], 64, at_least=False,
        unit=" MiB")
    subprocess.run(["rm", "-f", origin, target, f"{target}.stillpoint"], check=True)


# Increments


def _increments(bench, section, place, directory):
    # Large enough that the start of a process is not most of what is measured.
    byte_count = bench.origin_bytes(place) * 4
    count = byte_count // BLOCK // 100
    seconds = {"stillpoint": [], "QEMU blockdev-backup": []}
    memory = {"stillpoint": []}
    ours, theirs = f"{directory}/ours", f"{directory}/theirs"
    for path in (ours, theirs):
        fill(path, byte_count)
    with servers.Stillpoint(bench.program, directory, {"disk": ours}) as server, \
            _Backup(theirs, f"{directory}/theirs-target", directory) as backup:
        target = f"{directory}/ours-target"
        server.take("r0", ["disk"], "memory:256M")
        server.call("copy", "disk@r0", target)
        for turn in range(bench.judged_rounds):
            for name in bench.in_turn(seconds, turn):
                if name == "stillpoint":
                    took, resident = _stillpoint(bench, server, target, turn + 1, count)
                    memory[name].append(resident / MEBIBYTE)
                else:
                    took = backup.increment(bench, turn + 1, count)
                seconds[name].append(took)
        server.call("snapshot", "destroy", f"r{bench.judged_rounds}")
        subprocess.run(["cmp", ours, target], check=True)
    subprocess.run(["cmp", theirs, f"{directory}/theirs-target"], check=True)
    bench.results.row(
        section, f"increment, 1 % of {byte_count // MEBIBYTE} MiB in blocks of 4 KiB", "ms",
        {name: [one * 1000 for one in runs] for name, runs in seconds.items()},
        higher_is_better=False, details={"memory MiB": memory})
    bench.results.target(
        f"{place}: increment of 1 % scattered, rate as ratio to blockdev-backup",
        ratios(seconds["QEMU blockdev-backup"], seconds["stillpoint"]), 2.0)
    bench.results.target(
        f"{place}: memory of an increment", memory["stillpoint"], 64, at_least=False, unit=" MiB")


def _stillpoint(bench, server, target, turn, count):
    bench.loads.run(
        server, "disk", "write", "random", seconds=0, stride=BLOCK, requests=count, seed=turn)
    server.call("snapshot", "destroy", f"r{turn - 1}")
    server.take(f"r{turn}", ["disk"], "memory:256M")
    # The whole command, from the question what changed to the synced record.
    return _timed([
        bench.program, "copy", f"disk@r{turn}", target, "--since", f"r{turn - 1}", "--control",
        server.control])


class _Backup(servers.Server):
    """qemu-storage-daemon with a bitmap over its origin, a full backup of it, and a monitor."""

    def __init__(self, origin, target, directory):
        self.monitor_path = f"{directory}/qmp.sock"
        self.events = []
        self.target = target
        export = f"{directory}/backup.sock"
        # Both begin equal, so the first bitmap begins empty.
        subprocess.run(["cp", origin, target], check=True)
        super().__init__(
            "QEMU blockdev-backup",
            [
                "qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=disk,filename={origin},aio=io_uring",
                "--blockdev", f"driver=file,node-name=copy,filename={target},aio=io_uring",
                "--chardev", f"socket,id=qmp,path={self.monitor_path},server=on,wait=off",
                "--monitor", "chardev=qmp",
                "--nbd-server", f"addr.type=unix,addr.path={export},max-connections=0",
                "--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
            ], export, f"{directory}/backup.log")

    def __enter__(self):
        super().__enter__()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.monitor_path)
        self.monitor = connection.makefile("rw")
        self.monitor.readline()
        self._execute("qmp_capabilities")
        self._execute("block-dirty-bitmap-add", node="disk", name="changes")
        return self

    def __exit__(self, *failure):
        self.monitor.close()
        return super().__exit__(*failure)

    def _execute(self, command, **arguments):
        json.dump({"execute": command, "arguments": arguments}, self.monitor)
        self.monitor.write("\n")
        self.monitor.flush()
        while True:
            answer = json.loads(self.monitor.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return
            # A job may be over before the answer that it has begun.
            self.events.append(answer)

    def increment(self, bench, turn, count):
        """Seconds that a backup of what the bitmap says takes."""
        bench.loads.run(
            self, "disk", "write", "random", seconds=0, stride=BLOCK, requests=count, seed=turn)
        begin = time.monotonic()
        self._execute(
            "blockdev-backup", **{
                "job-id": f"b{turn}", "device": "disk", "target": "copy", "sync": "incremental",
                "bitmap": "changes"})
        while True:
            event = self.events.pop(0) if self.events else json.loads(self.monitor.readline())
            if event.get("event") == "BLOCK_JOB_COMPLETED":
                if "error" in event["data"]:
                    raise RuntimeError(event["data"]["error"])
                # Ours is on stable storage, too.
                subprocess.run(["sync", self.target], check=True)
                return time.monotonic() - begin
