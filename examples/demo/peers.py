"""The peers as processes: started, listened to, killed, and never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Record = dict[str, Any]
TRAIN = Path(__file__).with_name("train.py")


class Peer:
    """One process of train.py; its records go to a queue, what it writes to standard error to a file."""

    def __init__(self, name: str, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.killed = False
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(TRAIN), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def follow(self, records: queue.Queue[tuple[str, Record]]) -> None:
        """Passes the records on until the process ends; one that asks to be killed is killed at once."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            record = json.loads(line)
            if record["kind"] == "kill-me":
                self.kill()
            records.put((self.name, record))
        records.put((self.name, {"kind": "exit", "code": self.process.wait()}))

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        self.process.kill()

    def go(self) -> None:
        """Lets a peer that stands by connect."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended meanwhile, which its exit code tells
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ends the process if it still lives, and closes its pipes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Fleet:
    """All peers of a run, as a context manager: leaving it leaves no process behind."""

    def __init__(self, coordinator: dict[str, str], logs: Path) -> None:
        self.peers: dict[str, Peer] = {}
        self.records: queue.Queue[tuple[str, Record]] = queue.Queue()
        self._environment = {**os.environ, **coordinator, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._logs = logs
        self._threads: list[threading.Thread] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for peer in self.peers.values():
            if peer.process.poll() is None:
                peer.process.kill()
        for thread in self._threads:
            thread.join()
        for peer in self.peers.values():
            peer.close()

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Starts a peer and listens to it."""
        peer = Peer(name, arguments, self._environment, self._logs / f"peer-{name}.log")
        self.peers[name] = peer
        thread = threading.Thread(target=peer.follow, args=(self.records,), name=f"follow {name}", daemon=True)
        thread.start()
        self._threads.append(thread)
