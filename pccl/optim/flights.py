"""flights.py - Flights: rounds of all replicas, a fragment at a time, which may be on their way while training goes on.

A header and the delta travel side by side (exchange.py says in which form); when both are here, the mode makes its
update (modes.py). The delta is kept until then, so that a round can be begun again with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccl.errors import PcclError, PeerLost, TooFewPeers
from pccl.optim.exchange import Exchange, Header, Lot
from pccl.optim.line import Call, Comm, Steps, Waits
from pccl.optim.master import Fragment
from pccl.optim.modes import Mode
from pccl.optim.rounds import Key, fresh_delta
from pccl.optim.shards import Shards
from pccl.optim.stats import Round

__all__ = ["Flights"]


@dataclass(slots=True)
class _Flight:
    """A fragment on its way. `outcome`: what has come of it: results of both ops, and headers in the order of the
    second's peers."""

    lot: Lot
    own: Header
    header: Waits
    payload: Waits
    outcome: tuple[Any, Any, list[Header]] | None = None


class Flights:
    """See the header; a Rounds. `weigh`: weight of a contribution, from the inner steps in it."""

    def __init__(
        self,
        comm: Comm,
        fragments: list[Fragment],
        exchange: Exchange,
        mode: Mode,
        weigh: Callable[[int], float],
        timeout_s: float | None,
        shards: Shards,
    ) -> None:
        self.exchange = exchange
        self._comm, self._fragments, self._mode = comm, fragments, mode
        self._weigh, self._timeout_s, self._shards = weigh, timeout_s, shards
        self._flights: dict[Key, _Flight] = {}
        self._fresh: dict[int, tuple[Tensor, bool]] = {}  # of fragments that land, and are sent next

    def look_ahead(self, index: int) -> None:
        if index not in self._fresh:
            self._fresh[index] = fresh_delta(self._fragments[index])

    def send(self, key: Key, steps: int) -> Steps[None]:
        index, number = key
        fragment = self._fragments[index]
        delta, finite = self._fresh.pop(index) if index in self._fresh else fresh_delta(fragment)
        weight = float(self._weigh(steps)) if finite and steps else 0.0
        weight, all_finite = yield from self._shards.weigh(weight, finite)
        if not all_finite:
            delta.zero_()
        self._begin(key, delta, Header(weight, steps, all_finite, self._shards.replica), 0)
        self._mode.sent(fragment, self._flights[key].lot, number == 0, len(self._comm.peers))

    def again(self, key: Key, attempt: int) -> None:
        flight = self._flights.get(key)
        if flight is not None:
            self._flights[key] = self._start(key, flight.lot, flight.own, attempt)
        else:
            delta = self._fragments[key[0]].take().zero_()
            self._begin(key, delta, Header(0.0, 0, True, self._shards.replica), attempt)

    def arrive(self, key: Key) -> Steps[int]:
        flight = self._flights[key]
        flight.outcome = yield from _collect(flight)
        heads = sorted((header.replica, header.finite) for header in flight.outcome[2])
        return int.from_bytes(hashlib.blake2b(repr(heads).encode(), digest_size=7).digest(), "little")

    def land(self, key: Key, step: int, attempt: int) -> Round:
        flight, fragment = self._flights.pop(key), self._fragments[key[0]]
        assert flight.outcome is not None
        heads, result, headers = flight.outcome
        lot = flight.lot
        if any(header.weight for header in headers):
            self.exchange.finish(fragment, lot, result, headers)
            fresh = self._fresh.get(key[0])
            self._mode.landed(fragment, lot, fresh[0] if fresh else None, result.world_size)
        else:
            lot.mean.zero_()
        if not flight.own.finite:
            fragment.write(fragment.theta)
        delta_norm, mean_norm, cosine = compare(lot.delta, lot.mean)
        fragment.give(lot.delta, lot.mean)
        return Round(
            fragment=key[0],
            number=key[1],
            step=step,
            epoch=result.epoch,
            peers=result.peers,
            excluded=tuple(p for p, header in zip(result.peers, headers, strict=True) if not header.finite),
            retries=attempt + result.retries,
            bytes_sent=result.bytes_sent + heads.bytes_sent,
            bytes_received=result.bytes_received + heads.bytes_received,
            delta_norm=delta_norm,
            mean_norm=mean_norm,
            cosine=cosine,
        )

    def drop(self, key: Key) -> None:
        lot, fragment = self._flights.pop(key).lot, self._fragments[key[0]]
        self.exchange.dropped(fragment, lot)
        fragment.give(lot.delta, lot.mean)

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        return self._mode.shared(fragment)

    def passed(self) -> Steps[None]:
        yield from ()

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        return self.exchange.own(fragment)

    def _begin(self, key: Key, delta: Tensor, own: Header, attempt: int) -> None:
        fragment = self._fragments[key[0]]
        own = Header(own.weight, own.steps, own.finite, own.replica, self.exchange.norms(fragment, delta))
        self._flights[key] = self._start(key, Lot(delta, fragment.take(), own.weight), own, attempt)

    def _start(self, key: Key, lot: Lot, own: Header, attempt: int) -> _Flight:
        name = f"pccl.optim.{key[0]}.{key[1]}.{attempt}"
        timeout, fragment = self._timeout_s, self._fragments[key[0]]
        header = _begun(lambda: self._comm.all_gather(own.pack(), tag=f"{name}.head", async_op=True, timeout=timeout))
        payload = _begun(
            lambda: self.exchange.begin(self._comm, fragment, lot, tag=name, timeout=timeout, priority="low")
        )
        return _Flight(lot, own, header, payload)


def compare(delta: Tensor, mean: Tensor) -> tuple[float, float, float]:
    """Norms of delta and mean, and the cosine between them."""
    size, mean_size = float(delta.norm()), float(mean.norm())
    return size, mean_size, float(torch.dot(delta, mean)) / (size * mean_size) if size and mean_size else 0.0


def _begun(begin: Callable[[], Waits]) -> Waits:
    """An op in flight. With too few peers the call itself fails; that too is the same for all, and told in the end."""
    try:
        return begin()
    except TooFewPeers as error:
        return Call(lambda error=error: _raise(error))  # type: ignore[misc]


def _raise(error: PcclError) -> None:
    raise error


def _collect(flight: _Flight) -> Steps[tuple[Any, Any, list[Header]]]:
    """Waits for both ops, whatever becomes of the first: they borrow buffers."""
    results: list[Any] = []
    failed: PcclError | None = None
    for pending in (flight.header, flight.payload):
        try:
            results.append((yield pending))
        except PcclError as error:
            failed = failed or error
    if failed is not None:
        raise failed
    heads, result = results
    said = {peer: Header.unpack(row) for peer, row in zip(heads.peers, heads.tensor, strict=True)}
    if strangers := [peer for peer in result.peers if peer not in said]:
        raise PeerLost("a peer was lost between its header and its delta", peer=strangers[0], epoch=result.epoch)
    return heads, result, [said[peer] for peer in result.peers]
