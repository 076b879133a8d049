"""What runs at the two sites of loopback.py and wan.py: P, which has blocks, and D, which wants them.

Runs as a script against the installed package. Takes its job as JSON in argv[1], is told the rest in lines of JSON, and
answers in such lines; ends with its input. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import pccl
import pccl.kv as kv

sys.path.insert(0, str(Path(__file__).resolve().parent))
from raw import Sink, Source

DEADLINE_S = 120.0
WARM_BYTES = 64 << 20  # of plain streams, together
TOKENS, PLANES = 16, 2  # of a block, where codecs are compared
NEAR = 0.02  # of the greatest value, where a codec loses something
_SAY = threading.Lock()


def made(kind: str, nbytes: int) -> Any:
    """What P has: bytes of any kind, or bf16 values of a normal distribution."""
    chance = np.random.default_rng(1)
    if kind == "bytes":
        return chance.integers(0, 256, nbytes, np.uint8)
    return (chance.standard_normal(nbytes // 2, np.float32).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def floats(data: Any) -> Any:
    """bf16 values."""
    return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def say(**answer: Any) -> None:
    """One line."""
    with _SAY:
        print(json.dumps(answer), flush=True)


class Site:
    """The memory, and a pool over the beginning of it for each shape that is wanted."""

    def __init__(self, comm: pccl.Communicator, job: dict[str, Any]) -> None:
        self.comm, self.job = comm, job
        has = job["role"] == "p"
        self.content = made(job["content"], job["bytes"])
        self.memory = self.content.copy() if has else np.zeros(job["bytes"], np.uint8)
        self.pools: dict[tuple[int, int, int], kv.Pool] = {}
        self.receives: dict[str, kv.Receive] = {}

    def pool(self, told: dict[str, Any]) -> kv.Pool:
        """Of so many bytes in all, in layers, in blocks."""
        nbytes, layers, block = shape = told["bytes"], told["layers"], told["block"]
        if shape not in self.pools:
            names = tuple(f"L{at}" for at in range(layers))
            facts = {"planes": PLANES, "block_tokens": TOKENS} if "codec" in told else {"block_tokens": 1}
            group = kv.Group(name="g", layers=names, bytes_per_block_layer=block, **facts)
            layout = kv.Layout(model_id="bench", groups=(group,), codec_ok=("int8-kc-vt", "bf16-exp", "raw"))
            begin = told.get("begin", 0)
            parts = np.array_split(self.memory[begin : begin + nbytes], layers)
            self.pools[shape] = kv.register(self.comm, layout, {"g": parts}, name="/".join(map(str, shape)))
        return self.pools[shape]

    def blocks(self, told: dict[str, Any], role: str) -> Any:
        """All of them, in an order that is not that of the memory, and another on each side."""
        count = told["bytes"] // told["layers"] // told["block"]
        return np.random.default_rng(ord(role)).permutation(count)

    def check(self, told: dict[str, Any]) -> bool:
        """Whether D has what P has."""
        begin, nbytes, layers, block = told.get("begin", 0), told["bytes"], told["layers"], told["block"]
        shape = (layers, -1, block)
        mine = self.memory[begin : begin + nbytes].reshape(shape)[:, self.blocks(told, "d")]
        theirs = self.content[begin : begin + nbytes].reshape(shape)[:, self.blocks(told, "p")]
        if told.get("codec") != "int8":
            return bool(np.array_equal(mine, theirs))
        there = floats(np.ascontiguousarray(theirs))
        return bool(np.abs(floats(np.ascontiguousarray(mine)) - there).max() <= NEAR * np.abs(there).max())

    # -- D --

    def recv(self, told: dict[str, Any]) -> None:
        begin = told.get("begin", 0)
        self.memory[begin : begin + told["bytes"]] = 0
        priority, codec = told.get("priority", "normal"), told.get("codec", "raw")
        receive = self.pool(told).prep_recv(
            "r", self.blocks(told, "d"), deadline=DEADLINE_S, priority=priority, codec=codec
        )
        say(ticket=receive.ticket.hex())
        self._later(told, receive)

    def pull(self, told: dict[str, Any]) -> None:
        self.memory[: told["bytes"]] = 0
        pool, blocks = self.pool(told), self.blocks(told, "d")
        began = time.monotonic()
        receive = pool.pull(bytes.fromhex(told["peer"]), told["name"], blocks, deadline=DEADLINE_S, codec="raw")
        receive.wait()
        ended = time.monotonic()
        say(seconds=ended - began, right=self.check(told))

    def _later(self, told: dict[str, Any], receive: kv.Receive) -> None:
        name = told.get("name", "")
        self.receives[name] = receive

        def wait() -> None:
            try:
                got = receive.wait()
            except kv.EndError as error:
                say(failed=str(error), name=name, ended=time.monotonic())
                return
            ended = time.monotonic()
            say(ended=ended, wire_bytes=got.wire_bytes, right=self.check(told), name=name)

        threading.Thread(target=wait, daemon=True).start()

    def cancel(self, told: dict[str, Any]) -> None:
        self.receives[told["name"]].cancel()

    def sink(self, told: dict[str, Any]) -> None:
        sink = Sink(self.job["address"], told["streams"], self.memory[: told["bytes"]], WARM_BYTES // told["streams"])
        say(port=sink.port)
        say(ended=sink.wait())

    # -- P --

    def send(self, told: dict[str, Any]) -> None:
        """`every_s`: between a layer that is ready and the next."""
        pool, blocks, ticket = self.pool(told), self.blocks(told, "p"), bytes.fromhex(told["ticket"])
        began = time.monotonic()
        send = pool.open_send(ticket, blocks, codec=told.get("codec", "raw"))
        for layer in range(told["layers"]):
            time.sleep(max(0.0, began + (layer + 1) * told.get("every_s", 0.0) - time.monotonic()))
            send.layer_ready(f"L{layer}")
        last = time.monotonic()
        send.abort("bench") if told.get("abort") else send.finish()
        say(began=began, last=last)
        try:
            say(sent=send.wait().nbytes)
        except kv.EndError as error:
            say(failed=str(error))

    def offer(self, told: dict[str, Any]) -> None:
        self.pool(told).offer(told["name"], self.blocks(told, "p"), lease=DEADLINE_S)
        say(offered=True)

    def source(self, told: dict[str, Any]) -> None:
        warm_bytes = WARM_BYTES // told["streams"]
        streams = Source(told["host"], told["port"], told["streams"], self.job["congestion"], warm_bytes)
        say(began=streams.send(self.memory[: told["bytes"]]))


def main(job: dict[str, Any]) -> None:
    """Until the input ends."""
    options = {"secret": job["secret"], "timeout": 60.0, "transport": job["transport"]}
    if job["congestion"]:
        options["congestion"] = job["congestion"]
    with pccl.connect(job["coordinator"], run=job["run"], listen=f"{job['address']}:0", **options) as comm:
        site = Site(comm, job)
        say(id=comm.peer_id.hex())
        for line in sys.stdin:
            told = json.loads(line)
            threading.Thread(target=getattr(site, told["do"]), args=(told,), daemon=True).start()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
