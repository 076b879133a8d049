"""One peer of a chaos run: joins, and at each boundary synchronises its state, reduces, checks and advances.

Runs as a script against the installed package: `python peer.py JOB` with the job as JSON. It writes one JSON line per
event to standard output, each at once, and judges nothing but bytes; it takes orders in lines of JSON from standard
input (`{"do": "leave"}`, `{"do": "stop_at", "boundary": 90}`). It ends with 0 when it left in order, with GONE when
pccl told it that it is no member any more, with REFUSED when it was not let in.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

import numpy as np
import xxhash

import pccl
from stress.chaos import contents

GONE, REFUSED = 3, 4
#: After these a communicator is of no use.
FINAL = (pccl.Evicted, pccl.CoordinatorLost, pccl.Closed)


def say(event: str, **facts: Any) -> None:
    """One line, in one write."""
    os.write(1, json.dumps({"e": event, "t": round(time.monotonic(), 4), **facts}).encode() + b"\n")


def failure(error: pccl.PcclError) -> dict[str, str]:
    return {"error": type(error).__name__, "text": str(error)[:400]}


class Orders:
    """What the parent has told so far; the peer ends when the parent does."""

    def __init__(self, stop_at: int | None) -> None:
        self.leave = False
        self.stop_at = stop_at
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "leave":
                self.leave = True
            else:
                self.stop_at = order["boundary"]
        self.leave = True

    def is_over(self, boundary: int) -> bool:
        """Whether the boundary is beyond the last."""
        return self.leave or (self.stop_at is not None and boundary >= self.stop_at)


class Peer:
    """The loop."""

    def __init__(self, comm: pccl.Communicator, seed: int, work_s: float, orders: Orders) -> None:
        self.comm, self.seed, self.work_s, self.orders = comm, seed, work_s, orders
        self.me = comm.peer_id
        boundary = comm.boundary
        self.clean = contents.state_at(boundary)
        self.synced = boundary == 0
        model = self.clean.copy() if self.synced else np.zeros_like(self.clean)
        self.settled = 0  # members that have synchronised their state since they entered
        self.state: dict[str, Any] = {"model": model, "step": boundary if self.synced else -1}

    def run(self) -> None:
        """Until told to leave."""
        while not self.orders.leave:
            boundary = self.comm.boundary
            if boundary % contents.SYNC_EVERY == 0:
                self.sync(boundary)
            self.reduce(boundary)
            if self.orders.is_over(boundary + 1):
                return
            self.advance(boundary)
            time.sleep(self.work_s)

    def advance(self, boundary: int) -> None:
        begun = time.monotonic()
        view = self.comm.advance()
        members = [member.id.hex()[:8] for member in view.members]
        say("advance", b=boundary + 1, epoch=view.epoch, s=round(time.monotonic() - begun, 4), members=members)
        self.settled = sum(member.since <= boundary + 1 - 2 * contents.SYNC_EVERY for member in view.members)
        for array in (self.clean, self.state["model"]):
            contents.grow(array, boundary + 1)
        self.state["step"] += 1

    # -- state -------------------------------------------------------------------------------------------------------

    def sync(self, boundary: int) -> None:
        """Now and then one of the peers has drifted."""
        peers = self.comm.peers
        turn = peers.index(self.me) == boundary // contents.SYNC_EVERY % len(peers)
        drifts = turn and self.synced and self.settled > 3  # the others shall be the majority
        if drifts:
            self.state["model"][boundary % contents.STATE_ELEMENTS] ^= 1
        begun = time.monotonic()
        try:
            report = self.comm.sync_state(self.state, "majority" if self.synced else "receive")
        except FINAL:
            raise
        except pccl.PcclError as error:
            say("sync", b=boundary, ok=False, drifted=drifts, **failure(error))
            return
        self.synced = True
        right = self.state["step"] == boundary and np.array_equal(self.state["model"], self.clean)
        say(
            "sync", b=boundary, ok=True, exact=right, digest=report.digest, rounds=report.rounds, drifted=drifts,
            received=report.received_bytes, s=round(time.monotonic() - begun, 4),
        )  # fmt: skip

    # -- ops ---------------------------------------------------------------------------------------------------------

    def reduce(self, boundary: int) -> None:
        """All ops of the boundary."""
        flying = []
        last: pccl.Result | None = None
        for op in contents.ops_of(self.seed, boundary):
            if op.kind == "all_reduce":
                flying.append((op, *self.begin(boundary, op, last)))
                continue
            last = self.land(boundary, flying) or last
            self.land(boundary, [(op, *self.begin(boundary, op, last))])
        self.land(boundary, flying)

    def land(self, boundary: int, flying: list[Any]) -> pccl.Result | None:
        """Waits for all of them; gives the result of the last that succeeded."""
        found, gone = None, None
        while flying:
            try:
                found = self.finish(boundary, *flying.pop(0)) or found
            except FINAL as error:
                gone = error
        if gone is not None:
            raise gone
        return found

    def begin(self, boundary: int, op: contents.Op, last: pccl.Result | None) -> tuple[Any, Any, Any]:
        """Calls it; gives its Work, or the error of the call, the input and the output."""
        source = contents.contribution(self.me, boundary, op)
        out = None if op.in_place else np.zeros_like(source)
        say("begin", b=boundary, n=op.seq, kind=op.kind)
        options: dict[str, Any] = {"async_op": True, "tag": f"{boundary}.{op.seq}" if op.tagged else None}
        if op.kind == "all_reduce":
            options |= {"op": op.redop, "out": out, "codec": op.codec or None}
        elif op.kind == "broadcast":
            if last is None:  # nobody has had a result here, so nobody calls it
                return None, source, out
            options["root"] = last.peers[boundary % len(last.peers)]
        call = getattr(self.comm, op.kind)
        try:
            return (call(**options) if op.kind == "barrier" else call(source, **options)), source, out
        except pccl.PcclError as error:
            return error, source, out

    def finish(self, boundary: int, op: contents.Op, work: Any, source: Any, out: Any) -> pccl.Result | None:
        """Waits for its end, checks every byte and tells."""
        about: dict[str, Any] = {"b": boundary, "n": op.seq, "kind": op.kind}
        if work is None:
            say("end", **about, ok=False, error="skipped", text="", intact=True)
            return None
        begun = time.monotonic()
        try:
            if isinstance(work, pccl.PcclError):
                raise work
            result = work.wait()
        except pccl.PcclError as error:
            kept = op.kind == "broadcast" or source.tobytes() == contents.contribution(self.me, boundary, op).tobytes()
            say("end", **about, ok=False, intact=kept, **failure(error))
            if isinstance(error, FINAL):
                raise
            return None
        wrong, digest = self.judge(boundary, op, result, source)
        say(
            "end", **about, ok=True, epoch=result.epoch, peers=[peer.hex()[:8] for peer in result.peers],
            digest=digest, wrong=wrong, retries=result.retries, s=round(result.duration_s, 4),
            waited=round(time.monotonic() - begun, 4),
        )  # fmt: skip
        return result

    def judge(self, boundary: int, op: contents.Op, result: pccl.Result, source: Any) -> tuple[str, str]:
        """(what is wrong with the bytes, their digest where it must be the same everywhere)."""
        got = result.tensor
        if op.kind == "barrier":
            return "", ""
        wrong = ""
        if op.kind in ("all_reduce", "reduce_scatter"):
            wrong = contents.wrong_reduction(op, result.peers, boundary, got, result.offset)
        elif op.kind == "all_gather":
            wrong = contents.wrong_rows(op, result.peers, boundary, got)
        elif not any(got.tobytes() == contents.contribution(peer, boundary, op).tobytes() for peer in result.peers):
            wrong = "it is nobody's input"
        is_input = op.in_place or op.kind == "broadcast"
        if not is_input and source.tobytes() != contents.contribution(self.me, boundary, op).tobytes():
            wrong = wrong or "the input was changed, though the result went elsewhere"
        return wrong, "" if op.kind == "reduce_scatter" else xxhash.xxh3_64_hexdigest(np.ascontiguousarray(got))


def main(job: dict[str, Any]) -> int:
    """Gives the exit code."""
    orders = Orders(job["stop_at"])
    say("start", pid=os.getpid())
    options = {"listen": f"{job['host']}:0", "timeout": job["timeout_s"], "op_timeout": job["timeout_s"]}
    try:
        comm = pccl.connect(job["address"], secret=os.environ["PCCL_SECRET"], transport="tcp", **options)
    except pccl.PcclError as error:
        say("refused", **failure(error))
        return REFUSED
    say("member", peer=comm.peer_id.hex()[:8], entered=comm.entered, b=comm.boundary, epoch=comm.epoch)
    try:
        Peer(comm, job["seed"], job["work_s"], orders).run()
    except pccl.PcclError as error:
        say("gone", **failure(error))
        return GONE
    else:
        say("counters", **{name: count for name, count in comm.stats().items() if name != "links"})
        return 0
    finally:
        begun = time.monotonic()
        comm.close()
        say("closed", s=round(time.monotonic() - begun, 4))


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    sys.exit(main(json.loads(sys.argv[1])))
