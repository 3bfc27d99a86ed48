"""Generates a Python client from the OpenAPI description and takes a snapshot with it.

usage: generated.py SOCKET DESCRIPTION DEVICE
Validates the description first. Prints the names of the snapshots at the end.
"""

import importlib
import os
import subprocess
import sys
import tempfile


def main():
    path, description, device = sys.argv[1:4]
    tools = os.path.dirname(sys.executable)
    os.environ["PATH"] = tools + os.pathsep + os.environ["PATH"]
    subprocess.run(["openapi-spec-validator", description], check=True, stdout=sys.stderr)
    with tempfile.TemporaryDirectory() as directory:
        place = os.path.join(directory, "client")
        subprocess.run(
            ["openapi-python-client", "generate", "--path", description,
             "--output-path", place, "--meta", "none", "--fail-on-warning"],
            check=True, stdout=sys.stderr, cwd=directory)
        sys.path.insert(0, directory)
        take_snapshot(path, device)


def take_snapshot(path, device):
    import httpx

    client_module = importlib.import_module("client")
    models = importlib.import_module("client.models")
    api = {
        name: importlib.import_module(f"client.api.{name}")
        for name in ("snapshots.create_snapshot", "snapshots.list_snapshots",
                     "snapshots.show_snapshot", "devices.show_device", "service.health")
    }
    client = client_module.Client(
        base_url="http://localhost",
        httpx_args={"transport": httpx.HTTPTransport(uds=path)})
    assert api["service.health"].sync(client=client).status.value == "ok"
    made = api["snapshots.create_snapshot"].sync(
        client=client, body=models.SnapshotCreate(devices=[device], name="generated"))
    assert made.state.value == "held", made
    shown = api["devices.show_device"].sync(client=client, name=device)
    assert str(made.id) in [str(one) for one in shown.snapshots], shown
    missing = api["snapshots.show_snapshot"].sync(client=client, id="nothing")
    assert missing.error.code.value == "no_such_snapshot", missing
    print(" ".join(one.name for one in api["snapshots.list_snapshots"].sync(client=client)))


main()
