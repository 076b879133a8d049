"""`python -m stress.weights.catch_up`: what does it cost to have missed versions, and what does a frozen receiver cost?

A real publisher on loopback publishes the steps of an AdamW run (traces.py) as versions. Receivers that come 8 and 32
versions late get one fold each, which is compared with the bytes of the deltas that they missed (at most 0.55 and 0.35
of them). Then the publisher goes on beside a receiver that is stopped (SIGSTOP): how long do `publish` and "durable"
take, beside the same without it? At the end the receiver goes on, and must come to the newest version. All states are
compared.

Exit code 1: one of these was missed.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pccl
from pccl.coordinator.server import Coordinator
from pccl.weights import DeltaLog, MemoryShadow, Publisher, Receiver, Schema, Tensor, base
from stress.weights import traces

SECRET, WAIT_S = "stress", 120.0
MISSED = {8: 0.55, 32: 0.35}
RATE, SETTLE_STEPS = 1e-6, 24
FROZEN_ROUNDS = 12

State = np.ndarray[Any, Any]


def states(directory: Path, side: int, count: int) -> State:
    """Rows of consecutive states, late in a run of that rate, when Adam's moments have settled."""
    path = directory / f"chain-{side}-{count}.npy"
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        data, model = traces.text(), traces.Gpt(side)
        for _ in traces.train(model, data, traces.WARM_RATE, traces.WARM_STEPS, traces.WARM_BATCH, seed=1):
            pass
        steps = traces.train(model, data, RATE, SETTLE_STEPS + count, 1, seed=2)
        rows = [traces.bits(model) for number, _ in enumerate(steps) if number >= SETTLE_STEPS]
        np.save(path, np.stack(rows))
    return np.load(path, mmap_mode="r")


def named(state: State) -> dict[str, Any]:
    """As a tensor of the user's."""
    return {"all": torch.from_numpy(np.array(state).view(np.int16)).view(torch.bfloat16)}


def shadow_of(schema: Schema, state: State) -> MemoryShadow:
    """With the base."""
    made = MemoryShadow(schema)
    base.fill(made, named(state))
    return made


def late(comm: Any, source: bytes, schema: Schema, start: State, end: State, name: str) -> dict[str, Any]:
    """A receiver that has `start` as its base, and gets all there is."""
    shadow = shadow_of(schema, start)
    began = time.monotonic()
    with Receiver(comm, shadow, upstream=[source], name=name) as rx:
        update = rx.next(WAIT_S)
        with update.commit():
            pass
        took = time.monotonic() - began
        if shadow.tensor("all").tobytes() != np.array(end).tobytes():
            raise SystemExit("what was committed is not what was published")
        return {"bytes": update.stats.bytes, "seconds": took, "version": update.version}


def caught_up(trainer: Any, worker: Any, rows: State, missed: int, directory: Path) -> dict[str, Any]:
    """One row: so many versions behind."""
    name = f"missed-{missed}"
    schema = Schema([Tensor("all", (rows.shape[1],), "bfloat16")])
    log = DeltaLog(directory / name)
    with Publisher(trainer, schema, base=named(rows[0]), log=log, name=name) as pub:
        chain, changed = 0, 0
        for row in rows[1 : missed + 1]:
            stats = pub.publish(named(row)).wait("durable", WAIT_S)
            chain, changed = chain + stats.bytes, changed + stats.changed
        while log.settled != log.tip:
            time.sleep(0.01)
        found = late(worker, trainer.peer_id, schema, rows[0], rows[missed], name)
    share = found["bytes"] / chain
    density = changed / missed / rows.shape[1]
    row = {"op": "weights_catch_up", "missed": missed, "density": round(density, 5), "chain_bytes": chain, **found}
    return {**row, "share": round(share, 3), "wanted": MISSED[missed], "ok": share <= MISSED[missed]}


def paces(pub: Publisher, rows: State) -> Iterator[tuple[float, float]]:
    """(seconds of the call, seconds until it was durable) of each of some versions, to and fro between two states."""
    for number in range(FROZEN_ROUNDS):
        state = named(rows[number % 2])
        began = time.monotonic()
        ticket = pub.publish(state)
        called = time.monotonic() - began
        ticket.wait("durable", WAIT_S)
        yield called, time.monotonic() - began


def frozen(trainer: Any, address: str, rows: State, directory: Path) -> dict[str, Any]:
    """The publisher beside a receiver that follows, and then beside the same, stopped."""
    schema = Schema([Tensor("all", (rows.shape[1],), "bfloat16")])
    file = directory / "base.npy"
    np.save(file, np.array(rows[0]))
    with Publisher(trainer, schema, base=named(rows[0]), log=DeltaLog(directory / "frozen"), name="frozen") as pub:
        command = [sys.executable, __file__, "--follow", address, trainer.peer_id.hex(), str(file)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        beside = list(paces(pub, rows))
        process.send_signal(signal.SIGSTOP)
        stopped = list(paces(pub, rows))
        process.send_signal(signal.SIGCONT)
        version = 0
        while version < pub.tip.version:
            version, digest = json.loads(process.stdout.readline())
        process.stdin.close()
        process.wait(WAIT_S)
        right = digest == hash_of(rows[(FROZEN_ROUNDS - 1) % 2])
    calls = max(call for call, _ in stopped)
    before, after = (statistics.median(whole for _, whole in found) for found in (beside, stopped))
    return {
        "op": "weights_frozen", "publish_s": round(calls, 4), "durable_s": round(before, 4),
        "durable_frozen_s": round(after, 4), "ok": right and calls < 0.05 and after <= 1.2 * before + 0.01,
    }  # fmt: skip


def hash_of(state: State) -> str:
    """Of all bytes."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(state).tobytes())


def follow(address: str, source: str, file: str) -> None:
    """The process that is stopped: prints [version, digest] of each commit, first of the base."""
    rows = np.load(file)
    schema = Schema([Tensor("all", rows.shape, "bfloat16")])
    shadow = shadow_of(schema, rows)
    with pccl.connect(address, secret=SECRET, listen="127.0.0.1:0", timeout=60, enter=False) as comm:
        with Receiver(comm, shadow, upstream=[bytes.fromhex(source)], name="frozen") as rx:
            print(json.dumps([0, ""]), flush=True)
            while True:
                with rx.next().commit():
                    pass
                print(json.dumps([rx.version, hash_of(shadow.tensor("all"))]), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, default=Path("build/traces"))
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--follow", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.follow:
        follow(*arguments.follow)
        return
    rows = states(arguments.traces, arguments.side, max(MISSED) + 1)
    coordinator = Coordinator(min_peers=1, secret=SECRET)
    coordinator.start()
    found = []
    settings = {"secret": SECRET, "listen": "127.0.0.1:0", "timeout": 60}
    with tempfile.TemporaryDirectory() as scratch:
        with pccl.connect(coordinator.address, **settings) as trainer:
            with pccl.connect(coordinator.address, enter=False, **settings) as worker:
                for missed in MISSED:
                    found.append(caught_up(trainer, worker, rows, missed, Path(scratch)))
            found.append(frozen(trainer, coordinator.address, rows, Path(scratch)))
    coordinator.close()
    for row in found:
        print(json.dumps(row) if arguments.json else "  ".join(f"{key} {value}" for key, value in row.items()))
    sys.exit(not all(row["ok"] for row in found))


if __name__ == "__main__":
    main()
