#!/usr/bin/env python3
"""Stands in for nbdkit and qemu-nbd in the tests of others: serves with our program.

It goes by the name under which it was started, and understands as much of that program's command
line as the tests use. Environment:

  STAND_IN_PROGRAM  our program
  STAND_IN_REAL     the directory of the real nbdkit and qemu-nbd, which answer questions about
                    themselves (--version, --help, --list)
  STAND_IN_LOG      a file for the log of our program; without it, the log is dropped
  STAND_IN_REASON   a file that is written when something is wanted that another server alone has

The device's name is that of -x, and otherwise `disk`: no device can have the empty name of the
default export, so the tests are told to ask for `disk`.
"""

import array
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading


class Wanted:
    """What the command line asks for."""

    def __init__(self):
        self.listen = None  # ("stdio",), ("unix", path), ("tcp", port), ("passed",)
        self.name = "disk"
        self.read_only = False
        self.path = None  # of a file that is served; otherwise one of `size` bytes is made
        self.size = 1 << 20
        self.pattern = False
        self.command = None
        self.pid_file = None
        self.certificates = None
        self.keys = None
        self.require_tls = False
        self.verify = False
        self.once = False


def give_up(reason):
    """Ends a test that is about another server, not about a client."""
    if place := os.environ.get("STAND_IN_REASON"):
        with open(place, "w", encoding="utf-8") as file:
            file.write(reason)
    sys.exit(f"stand-in: {reason}")


def be_the_real(program):
    os.execv(os.path.join(os.environ["STAND_IN_REAL"], program), sys.argv)


def byte_count(text):
    units = {"K": 10, "M": 20, "G": 30}
    unit = text[-1].upper()
    return int(text[:-1]) << units[unit] if unit in units else int(text)


class Words:
    """Takes a command line apart: flags, and options with a value."""

    def __init__(self, words, with_value):
        self.words = list(words)
        self.with_value = with_value

    def __iter__(self):
        while self.words:
            word = self.words.pop(0)
            if not word.startswith("-") or word == "-":
                yield None, word
                continue
            if word.startswith("--"):
                option, given, value = word.partition("=")
            else:
                # -fv is -f -v, and -xNAME is -x NAME.
                option, value = word[:2], word[2:]
                given = bool(value)
                if given and option not in self.with_value:
                    self.words.insert(0, "-" + value)
                    given = False
            if option in self.with_value:
                yield option, value if given else self.words.pop(0)
            else:
                yield option, None


def read_nbdkit(words):
    wanted = Wanted()
    options = {"-U", "-p", "-P", "-D", "-e", "-i", "--filter", "--tls", "--tls-certificates",
               "--tls-psk", "--run", "--pidfile", "--port", "--unix"}
    plugin, settings = None, []
    for option, value in Words(words, options):
        if option in ("--version", "--dump-config", "--dump-plugin", "--help"):
            be_the_real("nbdkit")
        elif option is None and plugin is None:
            plugin = value
        elif option is None:
            settings.append(value)
        elif option == "-s":
            wanted.listen = ("stdio",)
        elif option == "-U":
            wanted.listen = ("unix", None if value == "-" else value)
        elif option == "-p":
            wanted.listen = ("tcp", int(value))
        elif option == "-P":
            wanted.pid_file = value
        elif option == "-r":
            wanted.read_only = True
        elif option == "--run":
            wanted.command = value
        elif option == "--tls":
            wanted.require_tls = value == "require"
        elif option == "--exit-with-parent":
            end_with_parent()
        elif option == "--tls-verify-peer":
            wanted.verify = True
        elif option == "--tls-certificates":
            wanted.certificates = value
        elif option == "--tls-psk":
            wanted.keys = value
        elif option == "--filter" and value != "cow":
            give_up(f"needs nbdkit's filter {value}")
        elif option in ("-o", "--oldstyle", "--mask-handshake", "--no-sr", "--vsock", "-D"):
            give_up(f"needs nbdkit's {option}")
    describe_plugin(wanted, plugin, settings)
    return wanted


def describe_plugin(wanted, plugin, settings):
    # The null plugin's 0 bytes are no device.
    if plugin not in ("memory", "null", "pattern", "file"):
        give_up(f"needs nbdkit's plugin {os.path.basename(plugin or 'none')}")
    for setting in settings:
        key, given, value = setting.partition("=")
        if not given:
            key, value = ("file" if plugin == "file" else "size"), setting
        if key == "file":
            wanted.path = value
        elif key == "size":
            wanted.size = byte_count(value)
        else:
            give_up(f"needs nbdkit's {plugin} {key}=")
    wanted.pattern = plugin == "pattern"


def read_qemu_nbd(words):
    wanted = Wanted()
    wanted.listen = ("tcp", 10809)
    wanted.once = True
    options = {"-k", "-f", "-e", "-x", "-D", "-B", "-p", "-b", "--pid-file", "--object",
               "--tls-creds", "--format"}
    kept = list(words)
    if {"--version", "--help", "--list", "-L", "-h", "-V"} & set(kept):
        be_the_real("qemu-nbd")
    for option, value in Words(words, options):
        if option is None:
            wanted.path = value
        elif option == "-k":
            wanted.listen = ("unix", value)
        elif option == "-p":
            wanted.listen = ("tcp", int(value))
        elif option == "-r":
            wanted.read_only = True
        elif option in ("-t", "--persistent"):
            wanted.once = False
        elif option == "-x" and value:
            wanted.name = value
        elif option == "--pid-file":
            wanted.pid_file = value
        elif option == "--object":
            take_credentials(wanted, value)
        elif option in ("-f", "--format") and value != "raw":
            give_up(f"needs qemu-nbd to open {value}")
        elif option in ("-A", "-B", "-D", "--image-opts", "-s", "-l", "-c"):
            give_up(f"needs qemu-nbd's {option}")
    if os.environ.get("LISTEN_FDS"):
        wanted.listen = ("passed",)
    if wanted.path is None:
        give_up("needs qemu-nbd's way to say that no file was named")
    return wanted


def take_credentials(wanted, text):
    kind, _, rest = text.partition(",")
    values = dict(part.split("=", 1) for part in rest.split(","))
    wanted.require_tls = True
    if kind == "tls-creds-x509":
        wanted.certificates = values["dir"]
    elif kind == "tls-creds-psk":
        wanted.keys = os.path.join(values["dir"], "keys.psk")
    else:
        give_up(f"needs qemu-nbd's object {kind}")


def end_with_parent():
    """Asks the kernel for SIGTERM when the parent ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Service:
    """Our program with one device."""

    def __init__(self, wanted):
        self.program = os.environ["STAND_IN_PROGRAM"]
        self.wanted = wanted
        self.place = tempfile.mkdtemp(prefix="stand-in.")
        self.control = os.path.join(self.place, "control")
        self.process = None
        self.tls = bool(wanted.certificates or wanted.keys)
        self.address = None  # what the relay connects to

    def start(self):
        wanted = self.wanted
        path = os.path.abspath(
            self.whole_sectors(wanted.path) if wanted.path else self.make_file())
        words = [self.program, "serve", "--control", self.control, "--runtime-dir", self.place,
                 "--state-dir", os.path.join(self.place, "state")]
        if wanted.read_only:
            self.remember_read_only(words, path)
        else:
            words += ["--attach", f"{wanted.name}={path}"]
        # TLS is for TCP. Clients on other sockets reach it through the relay.
        passed = wanted.listen[0] == "passed" and not self.tls
        if self.tls:
            port = wanted.listen[1] if wanted.listen[0] == "tcp" else free_port()
            self.address = ("127.0.0.1", port)
            words += ["--nbd", f"tcp:127.0.0.1:{port}"] + self.tls_words()
        elif wanted.listen[0] == "tcp":
            for host in ("127.0.0.1", "[::1]"):
                words += ["--nbd", f"tcp:{host}:{wanted.listen[1]}"]
        elif not passed:
            if wanted.listen[0] == "unix" and wanted.listen[1]:
                self.address = wanted.listen[1]
            else:
                self.address = os.path.join(self.place, "nbd")
            words += ["--nbd", f"unix:{self.address}"]
        self.spawn(words, passed)

    def remember_read_only(self, words, path):
        """Has the service attach the file, so that the next one has it before clients come."""
        self.spawn(words, False)
        subprocess.run([self.program, "device", "attach", self.wanted.name, path, "--read-only",
                        "--control", self.control], check=True, stdout=subprocess.DEVNULL)
        self.end()

    def spawn(self, words, passed):
        environment = {key: value for key, value in os.environ.items()
                       if not key.startswith("LISTEN_")}
        if passed:
            environment |= {"LISTEN_FDS": os.environ["LISTEN_FDS"], "LISTEN_FDNAMES": "nbd"}
            words = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"] + words
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.log(),
            env=environment,
            close_fds=True, pass_fds=[3] if passed else [],
            preexec_fn=end_with_parent)
        for line in self.process.stdout:
            if line.strip() == b"ready":
                return
        sys.exit("stand-in: the service did not start")

    def log(self):
        # Tests compare what the server says with what the real one would say.
        place = os.environ.get("STAND_IN_LOG", os.devnull)
        return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def tls_words(self):
        mode = ["--tls", "require" if self.wanted.require_tls else "allow"]
        if self.wanted.keys:
            # Tests leave the file readable; our program refuses keys that others can read.
            copy = os.path.join(self.place, "keys.psk")
            shutil.copyfile(self.wanted.keys, copy)
            os.chmod(copy, 0o600)
            return mode + ["--tls-psk", copy]
        place = self.wanted.certificates
        mode += ["--tls-cert", f"{place}/server-cert.pem", "--tls-key", f"{place}/server-key.pem"]
        return mode + (["--tls-ca", f"{place}/ca-cert.pem"] if self.wanted.verify else [])

    def whole_sectors(self, path):
        """The file, or a copy that is longer by some zeroes, as QEMU serves it."""
        size = os.path.getsize(path)
        if size % 512 == 0:
            return path
        if not self.wanted.read_only:
            give_up("needs a server of files that are not whole sectors")
        copy = os.path.join(self.place, "disk.img")
        shutil.copyfile(path, copy)
        os.truncate(copy, -size % 512 + size)
        return copy

    def make_file(self):
        if self.wanted.size % 512:
            give_up("needs a server of files that are not whole sectors")
        path = os.path.join(self.place, "disk.img")
        with open(path, "wb") as file:
            if self.wanted.pattern:
                numbers = array.array("Q", range(0, self.wanted.size, 8))
                numbers.byteswap()
                numbers.tofile(file)
            else:
                file.truncate(self.wanted.size)
        return path

    def end(self):
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process.stdout.close()
            self.process = None

    def stop(self):
        self.end()
        shutil.rmtree(self.place, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def shovel(source, target):
    try:
        while data := source.recv(1 << 20):
            target.sendall(data)
    except OSError:
        pass
    for end, how in ((target, socket.SHUT_WR), (source, socket.SHUT_RD)):
        try:
            end.shutdown(how)
        except OSError:
            pass


def relay(client, address):
    """Hands bytes on until both ends have closed."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    server = socket.socket(family)
    server.connect(address)
    there = threading.Thread(target=shovel, args=(client, server), daemon=True)
    there.start()
    shovel(server, client)
    # A client that is refused may leave its end open.
    client.close()
    server.close()


def relay_all(listener, address, once):
    threads = []
    while True:
        client, _ = listener.accept()
        thread = threading.Thread(target=relay, args=(client, address), daemon=True)
        thread.start()
        threads.append(thread)
        if once:
            thread.join()
            return


def serve(wanted, service):
    kind = wanted.listen[0]
    if wanted.pid_file:
        with open(wanted.pid_file, "w", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
    if kind == "stdio":
        relay(socket.socket(fileno=0), service.address)
    elif wanted.command:
        where = service.address
        if service.tls:
            where = os.path.join(service.place, "relay")
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(where)
            listener.listen(64)
            threading.Thread(target=relay_all, args=(listener, service.address, False),
                             daemon=True).start()
        environment = os.environ | {"unixsocket": where,
                                    "uri": f"nbd+unix:///{wanted.name}?socket={where}"}
        shell = (f"unixsocket='{where}'; uri='{environment['uri']}'; nbd=\"$uri\"; "
                 + wanted.command)
        sys.exit(subprocess.run(["bash", "-c", shell], env=environment).returncode)
    elif service.tls and kind in ("passed", "unix"):
        if kind == "passed":
            listener = socket.socket(fileno=3)
        else:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(wanted.listen[1])
            listener.listen(64)
        relay_all(listener, service.address, wanted.once)
    else:
        service.process.wait()


def main():
    own_name = os.path.basename(sys.argv[0])
    read = {"nbdkit": read_nbdkit, "qemu-nbd": read_qemu_nbd}[own_name]
    wanted = read(sys.argv[1:])
    if os.environ.get("LISTEN_FDS"):
        wanted.listen = ("passed",)
    if wanted.listen is None:
        wanted.listen = ("unix", None) if wanted.command else ("tcp", 10809)

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
    service = Service(wanted)
    try:
        service.start()
        serve(wanted, service)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        service.stop()


main()
