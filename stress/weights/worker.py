"""What runs at the sites of end_to_end.py: the trainer, a relay, or a receiver that commits whatever comes.

Runs as a script against the installed package. Takes its job as JSON in argv[1], is told the rest in lines of JSON, and
answers in such lines; ends with its input. Times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

import pccl
from pccl.weights import DeltaLog, MemoryShadow, Publisher, Receiver, Relay, Schema, Tensor, base

sys.path.insert(0, str(Path(__file__).resolve().parent))
import synthetic

SIDE = 2048  # a tensor is SIDE x SIDE: one block
TENSOR_MIB = SIDE * SIDE * 2 >> 20


def say(**answer: Any) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


def schema_of(job: dict[str, Any]) -> Schema:
    """So many tensors as the job has memory for."""
    return Schema(Tensor(f"w{number}", (SIDE, SIDE), "bfloat16") for number in range(job["mib"] // TENSOR_MIB))


def named(schema: Schema, tile: Any) -> Iterator[tuple[str, Any]]:
    """The same tile as every tensor, turned by its number: so no two are equal, and nothing is held twice."""
    import ml_dtypes

    for number, tensor in enumerate(schema.tensors):
        yield tensor.name, np.roll(tile, 97 * number).view(ml_dtypes.bfloat16).reshape(SIDE, SIDE)


def digest_of(arena: Any) -> str:
    """Of all bytes."""
    return xxhash.xxh3_128_hexdigest(arena)


def shadow_of(schema: Schema, tile: Any) -> MemoryShadow:
    """With the base."""
    made = MemoryShadow(schema)
    base.fill(made, named(schema, tile))
    return made


def trainer(comm: Any, job: dict[str, Any], scratch: Path) -> None:
    """Publishes when told to: to and fro between two states, in place, as an optimizer would."""
    import ml_dtypes

    schema = schema_of(job)
    tiles = synthetic.pair(SIDE * SIDE, job["density"])
    state = [value.copy() for _, value in named(schema, tiles[0])]
    where = np.flatnonzero(tiles[0] != tiles[1])
    places = [(where + 97 * number) % tiles[0].size for number in range(len(state))]
    pairs = list(zip((tensor.name for tensor in schema.tensors), state, strict=True))
    log = DeltaLog(scratch, keep_bytes=1 << 28)
    with Publisher(comm, schema, base=pairs, log=log, codecs=job["codecs"], threads=job["threads"]) as pub:
        say(id=comm.peer_id.hex())
        for number, line in enumerate(sys.stdin):
            told = json.loads(line)
            if "wait_for" in told:
                with pub._source.changed:
                    pub._source.changed.wait_for(lambda: pub.receivers()[0] >= told["wait_for"], 120)  # noqa: B023
                say(receivers=pub.receivers()[0])
                continue
            new = tiles[number % 2][where].view(ml_dtypes.bfloat16)
            for tensor, place in zip(state, places, strict=True):
                tensor.reshape(-1)[place] = new
            sent, at = comm.stats()["transfer_sent_bytes"], time.monotonic()
            ticket = pub.publish(pairs)
            stats = ticket.wait("all", 120)
            sent = comm.stats()["transfer_sent_bytes"] - sent
            while pub.log.settled != pub.log.tip:
                time.sleep(0.005)
            digest = digest_of(pub._baseline.arena)
            say(
                at=at, version=ticket.version, sent_bytes=sent, digest=digest, bytes=stats.bytes, changed=stats.changed,
                dense_bytes=stats.dense_bytes, encode_s=stats.encode_s, durable_s=stats.durable_s,
            )  # fmt: skip


def follow(comm: Any, job: dict[str, Any], scratch: Path) -> None:
    """A relay, or a receiver that says when it has committed what."""
    schema = schema_of(job)
    tile = synthetic.pair(SIDE * SIDE, job["density"])[0]
    shadow = shadow_of(schema, tile)
    say(id=comm.peer_id.hex())
    upstream = [bytes.fromhex(json.loads(sys.stdin.readline())["upstream"])]
    if job["role"] == "relay":
        at = shadow.at
        shadow.close()
        log = DeltaLog(scratch, keep_bytes=1 << 28)
        with Relay(comm, schema, base=at, log=log, upstream=upstream, threads=job["threads"]):
            say(ready=True)
            sys.stdin.read()
        return
    with Receiver(comm, shadow, upstream=upstream, threads=job["threads"]) as rx:
        say(ready=True)
        threading.Thread(target=lambda: (sys.stdin.read(), rx.close()), daemon=True).start()
        for update in rx.updates():
            with update.commit():
                pass
            at = time.monotonic()
            shadow.written()
            say(
                at=at,
                written_at=time.monotonic(),
                version=rx.version,
                digest=digest_of(shadow.arena),
                stage_s=update.stats.stage_s,
                commit_s=update.stats.commit_s,
            )


def main(job: dict[str, Any]) -> None:
    """Connects: trainer and relays as members, receivers as guests."""
    listen = f"{job['address']}:0"
    settings = {"run": job["run"], "secret": job["secret"], "listen": listen, "timeout": 120, "transport": "tcp"}
    settings["congestion"] = "bbr"  # others begin anew from ten packets after each pause between two versions
    with tempfile.TemporaryDirectory() as scratch:
        with pccl.connect(job["coordinator"], enter=job["role"] != "receiver", **settings) as comm:
            {"trainer": trainer}.get(job["role"], follow)(comm, job, Path(scratch))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
