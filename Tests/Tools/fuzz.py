"""Runs schemathesis against a control socket, through a TCP proxy: it knows no Unix sockets.

usage: fuzz.py SOCKET DESCRIPTION EXAMPLES SEED [PATH-REGEX-TO-LEAVE-OUT]
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading

CONFIGURATION = """
[checks.positive_data_acceptance]
# What the description calls valid can still name what is not there, or not fit what is.
expected-statuses = ["2xx", "404", "409", "410", "422", "507"]

[[operations]]
# Ranges must lie within the device, which no schema can say.
include-name = "POST /v1/devices/{name}/changes"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "410", "413"]

[[operations]]
include-name = "GET /v1/events"
# A stream that follows does not end.
parameters = { "query.follow" = "false", "query.timeout" = "0" }
"""


def pump(source, target):
    try:
        while piece := source.recv(65536):
            target.sendall(piece)
    except OSError:
        pass
    finally:
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(listener, path):
    while True:
        client, _ = listener.accept()
        service = socket.socket(socket.AF_UNIX)
        try:
            service.connect(path)
        except OSError:
            client.close()
            continue
        for ends in ((client, service), (service, client)):
            threading.Thread(target=pump, args=ends, daemon=True).start()


def main():
    path, description, examples, seed = sys.argv[1:5]
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=serve, args=(listener, path), daemon=True).start()
    with tempfile.TemporaryDirectory() as directory:
        configuration = os.path.join(directory, "schemathesis.toml")
        with open(configuration, "w") as file:
            file.write(CONFIGURATION)
        program = os.path.join(os.path.dirname(sys.executable), "schemathesis")
        command = [
            program, "--config-file", configuration, "run", description,
            "--url", f"http://127.0.0.1:{listener.getsockname()[1]}",
            "--checks", "all", "--max-examples", examples, "--seed", seed,
            "--request-timeout", "60", "--no-color", "--suppress-health-check", "all",
            "--continue-on-failure", "--generation-database", ":memory:",
        ]
        if len(sys.argv) > 5:
            command += ["--exclude-path-regex", sys.argv[5]]
        return subprocess.run(command, cwd=directory).returncode


sys.exit(main())
