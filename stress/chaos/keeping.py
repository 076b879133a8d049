"""Where the coordinators of a chaos run keep it: in a file on a small disk that can be filled, or in etcd, where one of
them leads and the other stands by."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from stress.wan import Emulator

HUB, STANDBY = "hub", "hub2"
ETCD = shutil.which("etcd")
ETCD_PORT = 2379
DISK_BYTES = 8 << 20
PREFIX = "pccl-chaos"
BLOCK = bytes(64 << 10)


class OnDisk:
    """A coordinator, and a file system in memory for its file; unmounted at the end, or by the next run."""

    sites: tuple[str, ...] = (HUB,)

    def __init__(self, wan: Emulator, directory: Path) -> None:
        sweep()
        self._folder = directory / "disk"
        self._folder.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", f"{PREFIX}-{os.getpid()}"]
        subprocess.run(["mount", *options, str(self._folder)], check=True)

    def options(self) -> dict[str, Any]:
        """Of the Coordinator."""
        return {"state": str(self._folder / "state")}

    def fill(self) -> None:
        """Not a byte is free."""
        with contextlib.suppress(OSError), (self._folder / "filler").open("wb", buffering=0) as filler:
            while filler.write(BLOCK):
                pass

    def clean(self) -> None:
        """Undoes it."""
        (self._folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self._folder)], check=False)


class InEtcd:
    """Two coordinators and an etcd, which lives where the first of them does, and through all of it."""

    sites: tuple[str, ...] = (HUB, STANDBY)

    def __init__(self, wan: Emulator, directory: Path) -> None:
        address = wan.address(HUB)
        self._url = f"{address}:{ETCD_PORT}"
        peers = f"http://{address}:{ETCD_PORT + 1}"
        command = [
            str(ETCD), "--data-dir", str(directory / "etcd"), "--name", "only", "--initial-cluster", f"only={peers}",
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
            "--listen-client-urls", f"http://{self._url}", "--advertise-client-urls", f"http://{self._url}",
        ]  # fmt: skip
        with (directory / "etcd.log").open("wb") as log:
            self._process = wan.popen(HUB, command, stdout=log, stderr=log)

    def options(self) -> dict[str, Any]:
        """Of the Coordinator."""
        return {"ha": f"etcd://{self._url}"}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def sweep() -> None:
    """Unmounts what programs that are no more have left."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, where, *_ = line.split()
        name, _, pid = source.rpartition("-")
        if name == PREFIX and not Path(f"/proc/{pid}").exists():
            subprocess.run(["umount", "--lazy", where.replace("\\040", " ")], check=False)


KEEPERS = {"file": OnDisk, "etcd": InEtcd}
