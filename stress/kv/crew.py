"""crew.py - P and D as processes, and one transfer of each kind between them, timed and compared."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stress.wan.lines import Worker, WorkerError

SCRIPT = Path(__file__).with_name("worker.py")
HUB = Path(__file__).parents[1] / "wan" / "hub.py"
START_S, MOVE_S, END_S = 120.0, 120.0, 10.0
PORT = 29400
HEAD_START_S = 1.0

Row = dict[str, Any]


class Here:
    """Sites that are all this machine, as an Emulator would start their processes."""

    def popen(
        self, site: str, argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a process."""
        return subprocess.Popen(argv, env=env, **options)

    def address(self, site: str) -> str:
        """Loopback."""
        return "127.0.0.1"


class Crew:
    """`wan`: an Emulator with the sites p, d and hub, or Here. `nbytes`: of the memory of either; `content`: what P has
    in it, "bytes" or "normal" values.
    """

    def __init__(
        self, wan: Any, nbytes: int, transport: str = "tcp", congestion: str = "", content: str = "bytes"
    ) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
        env |= {"RES_OPTIONS": "timeout:1 attempts:1", "OMP_NUM_THREADS": "1"}
        job = {
            "coordinator": f"tcp://{wan.address('hub')}:{PORT}", "run": "kv", "secret": secrets.token_hex(32),
            "peers": 2, "bytes": nbytes, "transport": transport, "congestion": congestion, "content": content,
        }  # fmt: skip

        def start(site: str, script: Path = SCRIPT) -> Worker:
            mine = {**job, "role": site, "address": wan.address(site)}
            return Worker(wan, site, [sys.executable, str(script), json.dumps(mine)], env)

        self.hub = start("hub", HUB)
        self.hub.answer(time.monotonic() + START_S)
        self.p, self.d = start("p"), start("d")
        self.p_address, self.d_address = wan.address("p"), wan.address("d")
        self.p_id, _ = (self._answer(worker, START_S)["id"] for worker in (self.p, self.d))

    def push(self, block: int, nbytes: int, layers: int = 1, every_s: float = 0.0, **more: Any) -> Row:
        """One push: seconds in all, and after the last layer was ready."""
        shape = {"block": block, "bytes": nbytes, "layers": layers, **more}
        self.begin_push(shape, every_s)
        told = self._answer(self.p)
        return self.end_push(told)

    def begin_push(self, shape: Row, every_s: float = 0.0) -> None:
        """Reserves and opens; P answers when it has said that all is ready."""
        self.d.tell(do="recv", **shape)
        ticket = self._answer(self.d)["ticket"]
        self.p.tell(do="send", ticket=ticket, every_s=every_s, **shape)

    def end_push(self, told: Row) -> Row:
        """When D had it."""
        got, sent = self._answer(self.d), self._answer(self.p)
        if "failed" in got or "failed" in sent or not got["right"]:
            raise WorkerError(f"what came is not what was sent: {got} {sent}")
        ended = got["ended"]
        return {"s": ended - told["began"], "tail_s": ended - told["last"], "wire_bytes": got["wire_bytes"]}

    def aborted(self, shape: Row) -> float:
        """Seconds from the sender's abort until the receiver's blocks are free. The layers are half a second apart."""
        self.begin_push({**shape, "abort": True}, HEAD_START_S / 2)
        told, got, sent = self._answer(self.p), self._answer(self.d), self._answer(self.p)
        if "failed" not in got or "failed" not in sent:
            raise WorkerError("what was aborted has ended well")
        return float(got["ended"] - told["last"])

    def overtake(self, bulk: Row, small: Row) -> float:
        """Seconds of a push that begins while another is under way, which is then cancelled."""
        self.begin_push(bulk)
        self._answer(self.p)
        time.sleep(HEAD_START_S)
        seconds = self.push(**small)["s"]
        self.d.tell(do="cancel", name=bulk["name"])
        for worker in (self.d, self.p):
            if "failed" not in self._answer(worker):
                raise WorkerError("the large push had ended before it could be overtaken")
        return float(seconds)

    def pull(self, block: int, nbytes: int, layers: int = 1) -> float:
        """One pull: seconds."""
        shape = {"block": block, "bytes": nbytes, "layers": layers, "name": secrets.token_hex(4)}
        self.p.tell(do="offer", **shape)
        self._answer(self.p)
        self.d.tell(do="pull", peer=self.p_id, **shape)
        got = self._answer(self.d)
        if not got["right"]:
            raise WorkerError("what came is not what was offered")
        return float(got["seconds"])

    def raw(self, streams: int, nbytes: int) -> float:
        """Plain TCP: seconds, connections that are new but open."""
        self.d.tell(do="sink", streams=streams, bytes=nbytes)
        port = self._answer(self.d)["port"]
        self.p.tell(do="source", host=self.d_address, port=port, streams=streams, bytes=nbytes)
        began = self._answer(self.p)["began"]
        return float(self._answer(self.d)["ended"] - began)

    def close(self) -> None:
        """All of them end."""
        for worker in (self.d, self.p, self.hub):
            worker.close(END_S)

    def _answer(self, worker: Worker, seconds: float = MOVE_S) -> Row:
        return worker.answer(time.monotonic() + seconds)
