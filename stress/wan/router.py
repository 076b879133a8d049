"""The router process: built when its sources have changed, started, spoken to over its socket, ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from .namespaces import run_prefix

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent.parent / "build" / "wan"
MEMORY_MB = 1024
START_S = 10.0
ANSWER_S = 10.0


class RouterError(RuntimeError):
    """It did not build, start or do as told."""


def build() -> Path:
    """Brings router and probe up to date; returns their directory. Several programs may do so at once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["make", "--silent", "-C", str(HERE), f"OUT={BUILD}"]
        # a make that runs this must not pass its own flags on
        environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RouterError(f"the router does not build:\n{done.stdout}{done.stderr}")
    return BUILD


class Client:
    """Speaks to a router; any thread."""

    def __init__(self, path: str | Path) -> None:
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")

    def __call__(self, op: str, **fields: Any) -> dict[str, Any]:
        """Has one command carried out; returns the answer."""
        line = json.dumps({"op": op, **fields}) + "\n"
        with self._lock:
            try:
                self._socket.sendall(line.encode())
                answer = self._file.readline()
            except OSError as error:
                raise RouterError(f"the router does not answer: {error}") from error
        if not answer:
            raise RouterError("the router is gone")
        result: dict[str, Any] = json.loads(answer)
        if not result.pop("ok"):
            raise RouterError(f"{line.strip()}: {result['error']}")
        return result

    def close(self) -> None:
        self._file.close()
        self._socket.close()


class Router:
    """The process and a client of it. A context manager."""

    def __init__(self, seed: int = 1, memory_mb: int = MEMORY_MB) -> None:
        self._command = [str(build() / "router")]
        self._arguments = [str(seed), str(memory_mb)]
        self._stack = contextlib.ExitStack()
        self.socket_path = Path()

    def __enter__(self) -> Router:
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=run_prefix()))
            self.socket_path = Path(directory) / "router.sock"
            command = [*self._command, str(self.socket_path), *self._arguments]
            # it ends with its standard input, so also when this program is killed
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            stack.callback(self._end)
            self.command = self._connect()
            stack.callback(self.command.close)
            self._stack = stack.pop_all()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def _connect(self) -> Client:
        deadline = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Client(self.socket_path)
            time.sleep(0.005)
        raise RouterError("the router did not start")

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *_: object) -> None:
        self._stack.close()
