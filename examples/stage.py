"""What examples 06 and 07 are played on: processes at sites, on the emulated WAN of stress/wan where this host lets us.

Each process says its news as lines of JSON, and does what lines of its input tell it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

WAIT_S = 60.0
_PORT = 29400
Popen = Callable[[str, list[str]], "subprocess.Popen[str]"]


def say(**what: Any) -> None:
    """One line of JSON."""
    print(json.dumps(what), flush=True)


class Process:
    """One of them. `script` is started with `--role ROLE OPTIONS`."""

    def __init__(self, popen: Popen, script: str, site: str, role: str, options: dict[str, Any]) -> None:
        self.name = f"{role} {options['name']}"
        self.process = popen(site, [sys.executable, script, "--role", role, json.dumps(options)])
        self._said: list[dict[str, Any]] = []
        self._read = 0
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._said.append(json.loads(line))
                self._news.notify_all()

    def next(self) -> dict[str, Any]:
        """What it says next."""
        return self.until(lambda news: True)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next of what it says that is wanted; what comes before it is passed over."""

        def found() -> bool:
            while self._read < len(self._said):
                self._read += 1
                if wanted(self._said[self._read - 1]):
                    return True
            return False

        with self._news:
            if not self._news.wait_for(found, WAIT_S):
                raise SystemExit(f"{self.name} does not answer")
            return self._said[self._read - 1]

    def tell(self, line: str) -> None:
        """A line of input."""
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def kill(self) -> None:
        """At once."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """At its own pace."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(WAIT_S)


@contextlib.contextmanager
def stage(
    sites: Sequence[str], rtt_ms: float, rate_mbit: float, local: bool
) -> Iterator[tuple[Popen, dict[str, str], int]]:
    """How to start a process at a site, the sites' addresses, and a port for the coordinator, which is at the first of
    them. `local`: without a network between them, as where the host does not let us have one.
    """
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from stress.wan.emulator import Emulator
    from stress.wan.namespaces import why_not
    from stress.wan.topology import parse

    if local or why_not():
        print("on this machine, with no network in between", flush=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        yield lambda site, command: subprocess.Popen(command, **pipes), dict.fromkeys(sites, "127.0.0.1"), port
        return
    places: dict[str, Any] = {**{site: {} for site in sites[1:]}, sites[0]: {"role": "coordinator"}}
    links = {"rtt_ms": rtt_ms, "rate_mbit": rate_mbit}
    with Emulator(parse({"name": "example", "sites": places, "defaults": links})) as wan:
        print(f"sites are {rtt_ms:g} ms and {rate_mbit:g} Mbit/s apart", flush=True)
        addresses = {site: wan.address(site) for site in sites}
        yield lambda site, command: wan.popen(site, command, cwd="/", **pipes), addresses, _PORT
