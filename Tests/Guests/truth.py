"""Compares what a live device reports with what differs between two frozen images.

    truth.py NAME DEVICE MOUNT ROUNDS

DEVICE is mounted at MOUNT and attached as the live device NAME. Ends with 1 when a block that differs
was not reported.
"""
import json
import os
import random
import subprocess
import sys
import zlib

name, device, mount, rounds = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
seed = int.from_bytes(os.urandom(4), "little")
random.seed(seed)


def run(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True).stdout


def image():
    """Sums of all blocks, read past the page cache."""
    sums = []
    with subprocess.Popen(["dd", f"if={device}", "bs=1M", "iflag=direct", "status=none"],
                          stdout=subprocess.PIPE) as source:
        while piece := source.stdout.read(1 << 20):
            sums += [zlib.crc32(piece[at:at + 4096]) for at in range(0, len(piece), 4096)]
    return sums


def changed(since):
    blocks = set()
    document = json.loads(run("stillpoint", "changes", name, "--since", since, "--json"))
    for entry in document["ranges"]:
        blocks.update(range(entry["offset"] // 4096,
                            (entry["offset"] + entry["length"] + 4095) // 4096))
    return blocks


def frozen(body):
    run("fsfreeze", "--freeze", mount)
    try:
        return image(), body()
    finally:
        run("fsfreeze", "--unfreeze", mount)


def work(number):
    for index in range(3):
        run("fio", "--name=load", f"--filename={mount}/load{index}", "--size=6m",
            "--rw=" + random.choice(["randwrite", "write"]),
            "--bs=" + random.choice(["512", "4k", "16k", "128k", "1m"]),
            "--ioengine=" + random.choice(["psync", "libaio", "io_uring", "mmap"]),
            "--iodepth=8", "--direct=" + random.choice("01"), "--io_size=2m",
            f"--randseed={random.randrange(1 << 30)}", "--output=/dev/null", check=False)
    with open(f"{mount}/odd{number % 4}", "wb") as odd:
        odd.write(os.urandom(random.randrange(1, 300000)))
    for index in range(40):
        with open(f"{mount}/small{index}", "wb") as small:
            small.write(os.urandom(random.randrange(1, 20000)))
    for index in random.sample(range(40), 20):
        os.unlink(f"{mount}/small{index}")
    if number % 2 == 0:
        os.unlink(f"{mount}/load0")
    run("fstrim", mount, check=False)


def cut(number):
    run("stillpoint", "checkpoint", "create", f"{name}{number}", "--device", name)


before, _ = frozen(lambda: cut(0))
total = 0
for number in range(1, rounds + 1):
    work(number)

    def look():
        reported = changed(f"{name}{number - 1}")
        cut(number)
        return reported

    after, reported = frozen(look)
    differing = {at for at in range(len(before)) if before[at] != after[at]}
    total += len(differing)
    missing = sorted(differing - reported)
    if missing or not differing:
        sys.exit(f"{name}, seed {seed}, round {number}: {len(differing)} differ, "
                 f"{len(missing)} not reported: {missing[:20]}")
    before = after
print(f"{name}: {rounds} rounds, {total} blocks differed, all reported")
