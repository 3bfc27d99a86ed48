"""Stillpoint and its peers as processes with an NBD socket, each started and ended by its id."""

import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time

from .machine import KIBIBYTE

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Server:
    """A process that serves `export` on a Unix socket. Use it in a `with`."""

    def __init__(self, name, command, socket, log, export="disk", prints_ready=False):
        self.name, self.command, self.socket, self.log = name, command, socket, log
        self.export, self.prints_ready = export, prints_ready
        self.process = None

    def __enter__(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        if not shutil.which(self.command[0]):
            raise RuntimeError(f"{self.command[0]} is not installed")
        with open(self.log, "w") as log:
            out = subprocess.PIPE if self.prints_ready else log
            self.process = subprocess.Popen(self.command, stdout=out, stderr=log, text=True)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_ready(self):
        if self.prints_ready:
            if self.process.stdout.readline().strip() != "ready":
                raise RuntimeError(self._complaint())
            return
        # The peers do not tell when they are ready: their socket does.
        deadline = time.monotonic() + 30
        uri = f"nbd+unix:///{self.export}?socket={self.socket}"
        while subprocess.run(
            ["nbdinfo", "--size", uri], capture_output=True, check=False
        ).returncode:
            if self._has_ended() or time.monotonic() > deadline:
                raise RuntimeError(self._complaint())
            time.sleep(0.02)

    def _has_ended(self):
        return self.process.poll() is not None

    def process_id(self):
        """The process that serves."""
        return self.process.pid

    def __exit__(self, *_):
        self.stop()

    def _complaint(self):
        with open(self.log) as log:
            return f"{self.name} did not start: {log.read().strip()[-300:]}"

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.process = None

    def _processes(self):
        """The process and those it forked (nbd-server has one for each connection)."""
        found, waiting = [], [self.process_id()]
        while waiting:
            process = waiting.pop()
            found.append(process)
            try:
                for task in os.listdir(f"/proc/{process}/task"):
                    with open(f"/proc/{process}/task/{task}/children") as file:
                        waiting += [int(child) for child in file.read().split()]
            except (FileNotFoundError, ProcessLookupError):
                pass
        return found

    def cpu_seconds(self):
        """CPU time of all its threads: schedstat counts nanoseconds, but only of living threads; stat
        counts ticks of ended ones and of ended children too. Kernel workers that io_uring starts
        are threads of the process."""
        total, ticks = 0, 0
        for process in self._processes():
            try:
                for task in os.listdir(f"/proc/{process}/task"):
                    with open(f"/proc/{process}/task/{task}/schedstat") as file:
                        total += int(file.read().split()[0])
                with open(f"/proc/{process}/stat") as file:
                    fields = file.read().rsplit(")", 1)[1].split()
                    ticks += sum(int(field) for field in fields[11:15])
            except (FileNotFoundError, ProcessLookupError):
                pass
        return max(total / 1e9, ticks / TICKS_PER_SECOND)

    def resident_bytes(self):
        """Resident memory of the process."""
        return self._status_bytes("VmRSS:")

    def anonymous_bytes(self):
        """The same without what is mapped from files, as the program's code is."""
        return self._status_bytes("RssAnon:")

    def _status_bytes(self, key):
        with open(f"/proc/{self.process_id()}/status") as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1]) * KIBIBYTE
        return 0


class Stillpoint(Server):
    """A fresh service with the given origins (name to path); `call` runs a client command."""

    def __init__(self, program, directory, origins, loops=None, name="stillpoint"):
        self.program = program
        self.control = f"{directory}/control.sock"
        state = f"{directory}/state"
        shutil.rmtree(state, ignore_errors=True)
        socket = f"{directory}/stillpoint.sock"
        command = [
            program, "serve", "--control", self.control, "--state-dir", state,
            "--runtime-dir", f"{directory}/run", "--nbd", f"unix:{socket}",
        ]
        for device, path in origins.items():
            command += ["--attach", f"{device}={path}"]
        if loops:
            command += ["--loops", str(loops)]
        super().__init__(
            name, command, socket, f"{directory}/stillpoint.log", prints_ready=True)

    def request(self, method, path, document=None):
        """The control socket's answer, and the milliseconds it took, connecting included."""
        connection = http.client.HTTPConnection("localhost")
        body = json.dumps(document) if document else None
        begin = time.monotonic()
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(self.control)
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        milliseconds = (time.monotonic() - begin) * 1000
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode()}")
        return json.loads(answer) if answer else None, milliseconds

    def call(self, *arguments):
        """A client command's JSON document."""
        command = [self.program, *arguments, "--control", self.control, "--json"]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        if outcome.returncode:
            raise RuntimeError(f"{' '.join(command)}: {outcome.stderr.strip()}")
        return json.loads(outcome.stdout)

    def take(self, name, devices, storage, limit="8G"):
        """Takes a snapshot of the devices with one storage; without a name it leaves no checkpoint."""
        options = [option for device in devices for option in ("--device", device)]
        if not storage.startswith("memory:"):
            options += ["--limit", limit]
        if name:
            options += ["--name", name]
        return self.call("snapshot", "create", *options, "--storage", storage)


def nbdkit(image, directory, filters=()):
    """nbdkit's file plugin, with filters."""
    socket = f"{directory}/nbdkit.sock"
    command = ["nbdkit", "-f", "-U", socket]
    for name in filters:
        command += ["--filter", name]
    return Server(
        "nbdkit" + "".join(f"+{name}" for name in filters), command + ["file", image], socket,
        f"{directory}/nbdkit.log", export="")


class Daemon(Server):
    """A server that goes into the background and writes its process id to a file."""

    def __init__(self, name, command, socket, log, pid_file):
        super().__init__(name, command, socket, log)
        self.pid_file = pid_file
        self.daemon = None

    def __enter__(self):
        if os.path.exists(self.pid_file):
            os.unlink(self.pid_file)
        return super().__enter__()

    def _has_ended(self):
        # The process that was started ends at once; the daemon is what lives on.
        return bool(self.process.poll())

    def process_id(self):
        if self.daemon is None:
            with open(self.pid_file) as file:
                self.daemon = int(file.read())
        return self.daemon

    def stop(self):
        if self.process is not None and os.path.exists(self.pid_file):
            try:
                self._end(self.process_id())
            except ProcessLookupError:
                # It ended by itself; why is in its log.
                pass
        self.daemon = None
        super().stop()


    @staticmethod
    def _end(process):
        ended = os.pidfd_open(process)
        try:
            os.kill(process, signal.SIGTERM)
            if not select.select([ended], [], [], 60)[0]:
                os.kill(process, signal.SIGKILL)
        finally:
            os.close(ended)


def _free_port():
    """nbd-server listens on TCP too, and not on a port of the kernel's choice."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nbd_server(image, directory):
    """nbd-server in its copy-on-write mode: what is written goes to a file beside the export."""
    path = f"{directory}/nbd-server.sock"
    configuration = f"{directory}/nbd-server.conf"
    pid_file = f"{directory}/nbd-server.pid"
    with open(configuration, "w") as file:
        file.write(
            f"[generic]\nunixsock = {path}\nlistenaddr = 127.0.0.1\nport = {_free_port()}\n"
            f"[disk]\nexportname = {image}\ncopyonwrite = true\n")
    return Daemon(
        "nbd-server copy-on-write", ["nbd-server", "-C", configuration, "-p", pid_file], path,
        f"{directory}/nbd-server.log", pid_file)


# How qemu-nbd reaches a file; the fastest on the place at hand is compared with.
QEMU_NBD_MODES = [
    [],
    ["--cache=writeback", "--aio=io_uring"],
    ["--cache=none", "--aio=io_uring"],
    ["--cache=none", "--aio=native"],
]


def qemu_nbd(image, directory, modes=()):
    """qemu-nbd with the given cache and aio options."""
    socket = f"{directory}/qemu-nbd.sock"
    return Server(
        "qemu-nbd",
        ["qemu-nbd", "-t", "-e", "0", "-f", "raw", "-x", "disk", "-k", socket, *modes, image],
        socket, f"{directory}/qemu-nbd.log")


def qemu_storage_daemon(image, directory, direct, bitmap=False):
    """qemu-storage-daemon's plain NBD export; `bitmap`: with a dirty bitmap that it keeps. A raw file
    holds no bitmap, so it lies in a qcow2 file whose data is the raw one."""
    socket = f"{directory}/qsd.sock"
    cache = f"cache.direct={'on' if direct else 'off'},aio=io_uring"
    command = [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=origin,filename={image},{cache}",
    ]
    node = "origin"
    if bitmap:
        meta = f"{directory}/qsd-bitmap.qcow2"
        if os.path.exists(meta):
            os.unlink(meta)
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o",
             f"data_file={image},data_file_raw=on", meta, str(os.path.getsize(image))],
            check=True)
        subprocess.run(["qemu-img", "bitmap", "--add", meta, "changes"], check=True)
        command += [
            "--blockdev", f"driver=file,node-name=meta,filename={meta},{cache}",
            "--blockdev", "driver=qcow2,node-name=tracked,file=meta,data-file=origin",
        ]
        node = "tracked"
    export = f"type=nbd,id=disk,node-name={node},name=disk,writable=on"
    command += [
        "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0",
        "--export", export + (",bitmaps.0=changes" if bitmap else ""),
    ]
    return Server(
        "qemu-storage-daemon" + (" with bitmap" if bitmap else ""), command, socket,
        f"{directory}/qsd.log")


# Targets that QEMU's copy-before-write can have; the fastest on the place at hand is compared with.
COPY_BEFORE_WRITE_MODES = [
    (target, direct, aio)
    for target in ("raw", "raw preallocated", "qcow2 64k", "qcow2 4k")
    for direct, aio in (("off", "threads"), ("off", "io_uring"), ("on", "io_uring"))
]


def copy_before_write(origin, directory, mode):
    """qemu-storage-daemon with copy-before-write over `origin`, a fresh target, and the image."""
    kind, direct, aio = mode
    target = f"{directory}/qemu-target"
    if os.path.exists(target):
        os.unlink(target)
    size = os.path.getsize(origin)
    layers, node = [], "tfile"
    if kind.startswith("raw"):
        with open(target, "wb") as file:
            file.truncate(size)
            if kind != "raw":
                os.posix_fallocate(file.fileno(), 0, size)
    else:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-o",
             f"cluster_size={kind.split()[1]},lazy_refcounts=on", target, str(size)],
            check=True)
        layers = [
            "--blockdev", "driver=qcow2,node-name=target,file=tfile,l2-cache-size=67108864"]
        node = "target"
    socket = f"{directory}/qemu.sock"
    cache = f"cache.direct={direct},aio={aio}"
    command = [
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=origin,filename={origin},{cache}",
        "--blockdev", f"driver=file,node-name=tfile,filename={target},{cache}",
        *layers,
        "--blockdev", f"driver=copy-before-write,node-name=cbw,file=origin,target={node}",
        "--blockdev", "driver=snapshot-access,node-name=access,file=cbw",
        "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0",
        "--export", "type=nbd,id=cbw,node-name=cbw,name=disk,writable=on",
        "--export", "type=nbd,id=access,node-name=access,name=image",
    ]
    return Server(
        "QEMU copy-before-write", command, socket, f"{directory}/qemu.log")
