"""A process at a site that is told what to do in lines of JSON, and answers with such lines."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from .emulator import Emulator

WORDS_MAX = 20

Answer = dict[str, Any]


class WorkerError(RuntimeError):
    """A process at a site failed, or did not answer in time; the message has its last words."""


class Worker:
    """What it prints besides its answers is kept for the case that it fails."""

    def __init__(self, wan: Emulator, site: str, command: Sequence[str], env: dict[str, str]) -> None:
        self.site = site
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = wan.popen(site, command, env=env, text=True, cwd="/", errors="replace", **pipes)
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        self._words: deque[str] = deque(maxlen=WORDS_MAX)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self._answers.put(json.loads(line))
            else:
                self._words.append(line.rstrip("\n"))
        self._answers.put(None)

    def tell(self, **command: Any) -> None:
        """Returns at once. WorkerError if nobody is there any more."""
        assert self.process.stdin is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
        except OSError:
            raise self._failed("is gone") from None

    def answer(self, deadline: float) -> Answer:
        """The next one; `deadline` by time.monotonic(). WorkerError if it does not come."""
        try:
            found = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise self._failed("does not answer") from None
        if found is None:
            raise self._failed("ended")
        return found

    def is_silent_until(self, deadline: float) -> bool:
        """Whether it neither answers nor ends until then; if it does, that was its answer."""
        try:
            self._answers.get(timeout=max(0.001, deadline - time.monotonic()))
        except queue.Empty:
            return True
        return False

    def close(self, timeout_s: float) -> None:
        """Its input ends, on which it ends; waits for that."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        self.process.stdout.close()

    def _failed(self, what: str) -> WorkerError:
        return WorkerError("\n  ".join([f"the process at {self.site} {what}", *self._words]))
