"""Clients: nbd-load over NBD, fio on block devices."""

import json
import subprocess

from .machine import BLOCK, CHUNK, DEPTH


class Loads:
    """Runs nbd-load, which costs less than the servers do: with fio's NBD engine the client would be
    measured."""

    def __init__(self, program, results):
        self.program = program
        self.results = results

    def command(self, socket, export, operation, pattern, block=BLOCK, depth=DEPTH, seconds=1,
                seed=4711, stride=None, requests=None):
        command = [
            self.program, socket, export, operation, pattern, str(block), str(depth),
            str(seconds), str(seed),
        ]
        if stride or requests:
            command.append(str(stride or block))
        if requests:
            command.append(str(requests))
        return command

    def start(self, *arguments, **options):
        """In the background; whoever starts it ends it."""
        return subprocess.Popen(
            self.command(*arguments, **options), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )

    def run(self, server, export, *arguments, **options):
        """One run: rate, latencies, and the server's CPU time per request."""
        command = self.command(server.socket, export, *arguments, **options)
        before = server.cpu_seconds()
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        after = server.cpu_seconds()
        if outcome.returncode:
            raise RuntimeError(f"{' '.join(command)}: {outcome.stderr.strip()}")
        answer = json.loads(outcome.stdout)
        answer["cpu_us"] = (after - before) / answer["requests"] * 1e6
        return answer

    def first_overwrites(self, server, export, count, seed=1):
        """4 KiB into each of `count` chunks, once, in random order."""
        return self.run(
            server, export, "write", "shuffled", seconds=0, seed=seed, stride=CHUNK,
            requests=count,
        )


def fio(device, pattern, seconds, depth=DEPTH, block="4k"):
    """fio on a block device: requests per second."""
    command = [
        "fio", "--name=bench", f"--filename={device}", "--ioengine=io_uring", "--direct=1",
        f"--rw={pattern}", f"--bs={block}", f"--iodepth={depth}", "--randseed=4711",
        "--norandommap", "--time_based", f"--runtime={int(seconds * 1000)}ms", "--ramp_time=0.3", "--thread",
        "--output-format=json",
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise RuntimeError(f"{' '.join(command)}: {outcome.stderr.strip() or outcome.stdout[-200:]}")
    job = json.loads(outcome.stdout[outcome.stdout.index("{"):])["jobs"][0]
    side = job["write" if "write" in pattern else "read"]
    return {
        "iops": side["iops"], "mean_us": side["lat_ns"]["mean"] / 1000,
        "p99_us": side["clat_ns"].get("percentile", {}).get("99.000000", 0) / 1000,
    }, command
