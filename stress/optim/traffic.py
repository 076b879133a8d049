"""traffic.py - what do the modes of pccl.optim send? Counters of real runs beside an all-reduce at every step.

    python -m stress.optim.traffic [--json]

Four communicators on loopback, every op over the mesh, which moves the fewest bytes that there can be; a model of eight
equal blocks whose gradients do not change, so that 500 inner steps take no time. Payload is `Result.bytes_sent` of the
ops of the deltas, summed over the peers: it holds no headers of frames and nothing of membership. The headers of rounds
(16 bytes to each peer) are counted apart, and named apart. Exit code 1 when a bound is not kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

import pccl
from pccl import optim
from pccl.coordinator.server import Coordinator

__all__ = ["FRAGMENTS", "PEERS", "SIZE", "Finding", "Tally", "diloco", "measure", "per_step"]

PEERS = 4
FRAGMENTS = 8
SIDE = 128  # a block is a matrix of that side: 2^14 parameters, 2^17 together
SIZE = FRAGMENTS * SIDE * SIDE
JOIN_S = 300.0
CONNECT_S = 60.0


@dataclass(slots=True)
class Tally:
    """Of one run, over all peers: payload and headers of rounds in bytes, the largest payload that a peer sent for an
    op, and the number of these."""

    steps: int
    payload: int = 0
    headers: int = 0
    largest: int = 0
    ops: int = 0

    def add(self, other: Tally) -> None:
        """Another peer's."""
        self.payload += other.payload
        self.headers += other.headers
        self.largest = max(self.largest, other.largest)
        self.ops += other.ops


class Counted:
    """A communicator as DiLoCo wants it, which counts what its ops have sent."""

    def __init__(self, comm: pccl.Communicator, tally: Tally) -> None:
        self._comm, self._tally = comm, tally

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def all_reduce(self, *arguments: Any, **options: Any) -> Any:
        """See pccl.Communicator."""
        return _Counting(self._comm.all_reduce(*arguments, **options), self._payload)

    def all_gather(self, *arguments: Any, **options: Any) -> Any:
        """See pccl.Communicator."""
        is_header = str(options["tag"]).endswith(".head")
        count = self._header if is_header else self._payload
        return _Counting(self._comm.all_gather(*arguments, **options), count)

    def _payload(self, nbytes: int) -> None:
        self._tally.payload += nbytes
        self._tally.largest = max(self._tally.largest, nbytes)
        self._tally.ops += 1

    def _header(self, nbytes: int) -> None:
        self._tally.headers += nbytes


class _Counting:
    """A Work that is counted when it has been waited for."""

    def __init__(self, work: pccl.Work, count: Callable[[int], None]) -> None:
        self._work, self._count = work, count

    def wait(self) -> Any:
        """See pccl.Work."""
        result = self._work.wait()
        self._count(result.bytes_sent)
        return result


class _Model(nn.Module):
    """Blocks of equal size; their gradients are noise that stays."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed)
        self.blocks = nn.ParameterList(torch.zeros(SIDE, SIDE) for _ in range(FRAGMENTS))
        for block in self.blocks:
            block.grad = torch.randn(SIDE, SIDE, generator=chance)


# -- runs --------------------------------------------------------------------------------------------------------------


def _together(steps: int, body: Callable[[Counted, int], None]) -> Tally:
    """body(communicator, place) on all peers at once."""
    total, errors = Tally(steps), list[BaseException]()

    def peer(place: int, address: str) -> None:
        tally = Tally(steps)
        try:
            with pccl.connect(address, listen="127.0.0.1:0", timeout=CONNECT_S, op_timeout=CONNECT_S) as comm:
                body(Counted(comm, tally), place)
                comm.barrier(tag="the end")
            total.add(tally)
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    with Coordinator(min_peers=PEERS, algorithm="mesh") as coordinator:
        threads = [threading.Thread(target=peer, args=(k, coordinator.address), daemon=True) for k in range(PEERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        raise TimeoutError(f"a peer did not end within {JOIN_S:g} s")
    return total


def per_step(steps: int) -> Tally:
    """An all-reduce of a gradient as large as the model after every step."""

    def body(comm: Counted, place: int) -> None:
        gradient = torch.cat([block.grad.flatten() for block in _Model(place).blocks])
        for _ in range(steps):
            comm.all_reduce(gradient, op="avg", async_op=True).wait()

    return _together(steps, body)


def diloco(steps: int, **options: Any) -> Tally:
    """So many inner steps of DiLoCo with these options."""

    def body(comm: Counted, place: int) -> None:
        model = _Model(place)
        opt = optim.DiLoCo(torch.optim.SGD(model.parameters(), lr=1e-6), model, comm, **options)
        for _ in range(steps):
            opt.step()
        opt.flush()

    return _together(steps, body)


# -- bounds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure and what is wanted of it."""

    what: str
    found: float
    wanted: str
    ok: bool


def measure() -> list[Finding]:
    """All runs, and what is to be said of them."""
    each, one = per_step(500), diloco(500, every=500)
    every_50 = {"every": 50, "mode": "streaming", "fragments": FRAGMENTS, "overlap": 1}
    plain, small = diloco(100, **every_50), diloco(100, codec="e3m0", **every_50)
    sparse = diloco(20, every=10, mode="sparse")
    return [*fewer_bytes(each, one), *streamed(each, one, plain, small), *bits_of_sparse(sparse)]


def fewer_bytes(each: Tally, one: Tally) -> list[Finding]:
    """DiLoCo with a round in 500 steps beside an all-reduce at each of them."""
    exact = each.payload == 500 * one.payload
    with_headers = each.payload / (one.payload + one.headers)
    return [
        Finding("DiLoCo, H=500: fewer bytes than per step", each.payload / one.payload, "500 exactly", exact),
        Finding("the same, headers of rounds included", with_headers, ">= 499", with_headers >= 499),
    ]


def streamed(each: Tally, one: Tally, plain: Tally, small: Tally) -> list[Finding]:
    """Streaming beside an all-reduce at each step, and the largest burst of it beside DiLoCo's."""
    models = small.ops / PEERS / FRAGMENTS  # how often the whole model was sent; the fragments are equal
    fewer = 50 * each.payload / each.steps / ((small.payload + small.headers) / models)
    burst, coded = one.largest / plain.largest, one.largest / small.largest
    is_smaller = plain.largest * FRAGMENTS <= one.largest
    return [
        Finding("streaming e3m0, H=50: fewer bytes, headers included", fewer, ">= 350", fewer >= 350),
        Finding(f"streaming, P={FRAGMENTS}: smaller burst", burst, f">= {FRAGMENTS}", is_smaller),
        Finding("the same with e3m0", coded, f">= {7 * FRAGMENTS}", coded >= 7 * FRAGMENTS),
    ]


def bits_of_sparse(sparse: Tally) -> list[Finding]:
    """What each of the others gets from a peer in a round."""
    sent = sparse.ops * (PEERS - 1)
    bits, headers = 8 * sparse.payload / sent / SIZE, sparse.headers / sent
    return [
        Finding("sparse: bits per parameter, round and receiver", bits, "<= 0.25", bits <= 0.25),
        Finding("sparse: bytes of header per round and receiver", headers, "<= 16", headers <= 16),
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the modes send.")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    as_json = parser.parse_args().json
    findings = measure()
    for one in findings:
        verdict = "ok" if one.ok else "MISSED"
        print(json.dumps(asdict(one)) if as_json else f"{one.what:<54}{one.found:10.3f}  {one.wanted:<12}{verdict}")
    return 0 if all(one.ok for one in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
