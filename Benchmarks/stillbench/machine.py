"""The machine: what it is, its page cache, its files."""

import os
import platform
import shutil
import subprocess

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
GIBIBYTE = 1024 * MEBIBYTE
BLOCK = 4 * KIBIBYTE
CHUNK = 64 * KIBIBYTE
DEPTH = 32


def version(command):
    """First line a program says of its version, or that it is missing."""
    if not shutil.which(command[0]):
        return "missing"
    text = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((text.stdout + text.stderr).strip().split("\n") or ["?"])[0]


def describe(stillpoint):
    """Facts that a reader needs to place the figures."""
    model = "?"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // GIBIBYTE
    return {
        "processor": model, "cpus": os.cpu_count(), "memory_gibibytes": memory,
        "kernel": platform.release(), "load": round(os.getloadavg()[0], 2),
        "versions": {
            "stillpoint": version([stillpoint, "--version"]),
            "nbdkit": version(["nbdkit", "--version"]),
            "qemu": version(["qemu-storage-daemon", "--version"]),
            "nbd-server": version(["nbd-server", "-V"]),
            "fio": version(["fio", "--version"]),
        },
    }


def write_back():
    """What earlier runs left must not fall into the next one."""
    subprocess.run(["sync"], check=True)


def drop_caches():
    """Writes everything back and empties the page cache; only root may."""
    write_back()
    try:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("3")
    except PermissionError:
        raise RuntimeError("the disk is measured with cold caches, which needs root") from None


def fill(path, byte_count):
    """A file with data everywhere: zeroes and holes would not have to be stored."""
    piece = os.urandom(MEBIBYTE)
    with open(path, "wb") as file:
        for _ in range(byte_count // MEBIBYTE):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def sparse(path, byte_count):
    """A file that is one hole."""
    with open(path, "wb") as file:
        file.truncate(byte_count)
