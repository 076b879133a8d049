"""An etcd of one member in a folder of its own, for the tests that want one; the host must have etcd-server."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pccl.coordinator.etcd import Client
from pccl.errors import StateError

ETCD = shutil.which("etcd")
MISSING = "etcd is not installed (Debian: etcd-server)"
LOOK_S = 0.1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Etcd:
    """The process; `url` as coordinators want it."""

    def __init__(self, folder: Path) -> None:
        self.port, peers = free_port(), free_port()
        self.url = f"etcd://127.0.0.1:{self.port}"
        self.client = Client([("127.0.0.1", self.port)])
        command = [
            str(ETCD), "--data-dir", str(folder / "etcd"), "--name", "only", "--initial-cluster", f"only=http://127.0.0.1:{peers}",
            "--listen-peer-urls", f"http://127.0.0.1:{peers}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peers}",
            "--listen-client-urls", f"http://127.0.0.1:{self.port}", "--advertise-client-urls", f"http://127.0.0.1:{self.port}",
        ]  # fmt: skip
        with (folder / "etcd.log").open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def ready(self) -> bool:
        try:
            self.client.ask("kv/range", {"key": "AA=="})
        except StateError:
            return False
        return True

    def ended(self, within_s: float) -> bool:
        try:
            self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def etcd(folder: Path) -> Iterator[Etcd]:
    """Serves until the end."""
    made = Etcd(folder)
    try:
        while not made.ready():
            assert not made.ended(LOOK_S), (folder / "etcd.log").read_text()
        yield made
    finally:
        made.close()
