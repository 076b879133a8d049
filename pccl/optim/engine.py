"""engine.py - OuterSync: when fragments are sent and land, who takes part, and how a newcomer gets into step.

The schedule (fragments.py) numbers the events of a run: fragment p is sent, fragment p lands. `position` is the number
of the next one, equal on all peers between two events; a peer reaches an event by its own count of inner steps, so
peers that skipped some (GradScaler) only come later. What is in flight follows from the position alone.

* send: delta <- Theta - theta, kept until its mean has landed; a header and the delta start on their way. Where a
  fragment lands and is sent again in one step, the delta is taken before the landing, and travels after it.
* land: the mean arrives, the mode makes its update (modes.py). An op that could not be done is begun again, with the
  same delta, after the next boundary: a round is committed by all who survive, or by none.
* boundary, after the last fragment of a period has landed, or between two attempts: newcomers enter, and sync_state
  proves that all hold the same bytes, or repairs it. If that fails it is done again at the next boundary. A newcomer
  has no part in what is in flight then, and cannot know how it ends: each fragment that crosses a boundary is
  synchronised once more at its landing (`_settle`), together with whether it landed or is begun again, which the
  newcomer then takes part in with weight 0. All of that follows from the position and from how ops ended, which is the
  same for all peers, so that nobody has to ask. What a newcomer does after a boundary follows from what it got there.

Everything here is a generator (line.py) and touches no thread and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from pccl.errors import Cancelled, Evicted, PcclError, PeerLost, Timeout, TooFewPeers
from pccl.optim.exchange import Exchange, Header, Lot
from pccl.optim.fragments import Event, Schedule
from pccl.optim.line import Call, Comm, Steps, Waits
from pccl.optim.master import Fragment
from pccl.optim.modes import Mode
from pccl.optim.stats import Round, Stats

__all__ = ["OuterSync", "Use"]

_RETRIES_MAX = 16
_AGAIN = (TooFewPeers, Timeout, PeerLost, Cancelled)

Key = tuple[int, int]  # a fragment and its round


@dataclass(slots=True)
class _Flight:
    """A fragment on its way."""

    lot: Lot
    own: Header
    header: Waits
    payload: Waits


@dataclass(frozen=True, slots=True)
class Use:
    """What OuterSync must know besides its parts.

    `on_failure`: of a round that cannot be done: "retry", "local" (it is dropped, everybody goes on from its own
    parameters) or "raise". `timeout_s`: of one op; None: the communicator's. `boundary_every`: periods from one
    boundary to the next. `drifting`: replicas differ by design, and only a newcomer takes over somebody's parameters.
    `resync_every`: periods between two averages of replicas that drift, 0 for never. `weigh`: weight of a contribution,
    from the inner steps in it.
    """

    on_failure: str = "retry"
    timeout_s: float | None = None
    boundary_every: int = 1
    drifting: bool = False
    resync_every: int = 0
    weigh: Callable[[int], float] = lambda steps: 1.0


class OuterSync:
    """One replica's part in the outer optimization. Not thread-safe."""

    def __init__(
        self, comm: Comm, fragments: list[Fragment], schedule: Schedule, exchange: Exchange, mode: Mode, use: Use
    ) -> None:
        self.comm, self.fragments, self.schedule = comm, fragments, schedule
        self.exchange, self.mode, self.use = exchange, mode, use
        self.position = 0
        self.step = 0  # inner steps on the run's scale: a newcomer begins at the others'
        self.landed: set[Key] = set()  # before their event, by flush
        self.stats = Stats()
        self.on_round: list[Callable[[Round], None]] = []
        self.inner_steps = [0] * len(fragments)  # made here since a fragment was last sent
        self._flights: dict[Key, _Flight] = {}
        self._fresh: dict[int, torch.Tensor] = {}  # deltas of fragments that land, and are sent next
        self._missed: set[Key] = set()  # under way when this peer entered
        self._crossed: set[Key] = set()  # under way at some boundary
        self._again = ""  # the fragment and round that is begun again
        self._flushing = False  # what lands now does so before its event
        self._attempt = 0
        self._seat = comm.peer_id.hex()  # differs until the first sync, so that all take over one peer's beginnings

    # -- what the faces call --

    def enter(self) -> Steps[None]:
        """The first thing a replica does in a run: gets what the others have, or proves that all begin alike."""
        try:
            yield from self._synchronise("majority")
        except _AGAIN as error:
            self._give_up(error, 0)
            yield from self._boundary(is_new=self.comm.entered > 0)
        self.step = self.schedule.event(self.position - 1).at_step if self.position else 0
        self._missed = set(self.in_flight())
        for key in _keys(self._again):  # the others repeat a round: so does this peer
            self._begin_again(key)
        if self._flushing:
            yield from self.flush()
            return
        if self._again:
            self.step = self.schedule.event(self.position).at_step
        yield from self._catch_up()  # the others do the rest of that step now

    def stepped(self) -> Steps[None]:
        """An inner step was made: carries out the events that are due."""
        self.inner_steps = [steps + 1 for steps in self.inner_steps]
        yield from self.skipped()

    def skipped(self) -> Steps[None]:
        """The same for a step that changed nothing, which no contribution stands for."""
        self.step += 1
        yield from self._catch_up()

    def _catch_up(self) -> Steps[None]:
        """The events that are due."""
        while (event := self.schedule.event(self.position)).at_step <= self.step:
            yield from self._event(event)

    def flush(self) -> Steps[None]:
        """Lands at once all that is in flight. Every peer calls it after the same number of steps."""
        self._flushing = True
        for key in self.in_flight():
            yield from self._land(key, True)
            self._missed.discard(key)
        self._flushing = False

    def consensus(self) -> Steps[None]:
        """Lands what is in flight, then makes replicas that drift equal: their mean. Every peer calls it after the same
        number of steps."""
        yield from self.flush()
        yield from self._average()

    def in_flight(self) -> list[Key]:
        """What was sent and has not landed, oldest first."""
        first = max(0, self.position - 4 * len(self.fragments))
        events = [self.schedule.event(number) for number in range(first, self.position)]
        landed = {(event.fragment, event.round) for event in events if event.kind == "land"} | self.landed
        sent = [(event.fragment, event.round) for event in events if event.kind == "send"]
        return [key for key in sent if key not in landed]

    def resume(self, position: int, step: int, landed: str, crossed: str) -> None:
        """Goes on from a checkpoint, in which nothing was in flight."""
        self.position, self.step = position, step
        self.landed, self._crossed, self._missed = set(_keys(landed)), set(_keys(crossed)), set()
        self.inner_steps = [0] * len(self.fragments)

    def entries(self) -> dict[str, Any]:
        """What must be equal on all peers at a boundary, for sync_state: tensors are shared."""
        return {**self._counters(), **self._tensors(self.fragments)}

    def _counters(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "attempt": self._attempt,
            "again": self._again,
            "flushing": self._flushing,
            "landed": _words(self.landed),
            "crossed": _words(self._crossed),
            "seat": self._seat,
        }

    def _adopt(self, entries: dict[str, Any]) -> None:
        self.position, self._attempt, self._again = entries["position"], entries["attempt"], entries["again"]
        self._flushing, self._seat = entries["flushing"], entries["seat"]
        self.landed, self._crossed = set(_keys(entries["landed"])), set(_keys(entries["crossed"]))

    # -- events --

    def _event(self, event: Event) -> Steps[None]:
        key = (event.fragment, event.round)
        is_boundary, just_passed = self._is_boundary(event), False
        if event.kind == "land" and key not in self.landed:
            self._look_ahead(event)
            just_passed = yield from self._land(key, not is_boundary)
        else:
            if event.kind == "send":
                self._send(key)
            self.landed.discard(key)
            self.position += 1
        if is_boundary and not just_passed:
            if self.use.resync_every and (event.round + 1) % self.use.resync_every == 0:
                yield from self._average()
            yield from self._boundary()
        if event.kind == "land":
            self._missed.discard(key)

    def _look_ahead(self, event: Event) -> None:
        """Takes the delta of a fragment that is sent again in this step, before its landing changes theta."""
        if self.schedule.overlap == self.schedule.every and self.inner_steps[event.fragment]:
            self._fresh.setdefault(event.fragment, self.fragments[event.fragment].delta())

    def _send(self, key: Key) -> None:
        index, number = key
        fragment = self.fragments[index]
        fresh = self._fresh.pop(index, None)
        delta = fragment.delta() if fresh is None else fresh
        steps, self.inner_steps[index] = self.inner_steps[index], 0
        finite = bool(torch.isfinite(delta).all())
        weight = float(self.use.weigh(steps)) if finite and steps else 0.0
        if not finite:
            delta.zero_()
        self._begin(key, delta, Header(weight, steps, finite))
        self.mode.sent(fragment, self._flights[key].lot, number == 0, len(self.comm.peers))

    def _begin(self, key: Key, delta: torch.Tensor, own: Header) -> None:
        fragment = self.fragments[key[0]]
        own = Header(own.weight, own.steps, own.finite, self.exchange.norms(fragment, delta))
        lot = Lot(delta, fragment.take(), own.weight)
        self._flights[key] = self._start(key, lot, own)

    def _start(self, key: Key, lot: Lot, own: Header) -> _Flight:
        name = f"pccl.optim.{key[0]}.{key[1]}.{self._attempt}"
        timeout, fragment = self.use.timeout_s, self.fragments[key[0]]
        header = _begun(lambda: self.comm.all_gather(own.pack(), tag=f"{name}.head", async_op=True, timeout=timeout))
        payload = _begun(
            lambda: self.exchange.begin(self.comm, fragment, lot, tag=name, timeout=timeout, priority="low")
        )
        return _Flight(lot, own, header, payload)

    def _land(self, key: Key, with_tensors: bool) -> Steps[bool]:
        """Waits until a fragment has landed. Nothing after a boundary may rest on what its newcomers do not know: True
        if the last thing that was done is to pass one. `with_tensors`: see `_settle`."""
        just_passed = False
        while key in self.in_flight():
            just_passed = False
            if key not in self._missed and (yield from self._committed(key)):
                self._pass(key)
            if key in self._crossed:
                just_passed = yield from self._settle(key, with_tensors)
                if key in self.in_flight() and not self._again:
                    self._pass(key)  # all who had part in it are gone
            if key in self.in_flight():
                if not just_passed:
                    yield from self._boundary()
                self._begin_again(key)
        return just_passed

    def _pass(self, key: Key) -> None:
        """It is in flight no more."""
        if self._flushing:
            self.landed.add(key)
        else:
            self.position += 1

    def _begin_again(self, key: Key) -> None:
        """With the same delta; who had no part in it, because it came later, has nothing to add."""
        self._missed.discard(key)
        flight = self._flights.get(key)
        if flight is not None:
            self._flights[key] = self._start(key, flight.lot, flight.own)
        else:
            self._begin(key, self.fragments[key[0]].take().zero_(), Header(0.0, 0, True))

    def _committed(self, key: Key) -> Steps[bool]:
        """Lets the mode take what came of a flight. False if it could not be done, on any peer."""
        flight = self._flights[key]
        try:
            heads, result, headers = yield from _collect(flight)
        except _AGAIN as error:
            self._give_up(error, self._attempt)
            if self.use.on_failure != "local":
                self._attempt, self._again = self._attempt + 1, _words([key])
                return False
            self.exchange.dropped(self.fragments[key[0]], flight.lot)
            self.stats.dropped += 1
        else:
            self._take(key, flight, result, headers)
            self._record(key, flight.lot, heads, result, headers)
        self._attempt, self._again = 0, ""
        self._forget(key)
        return True

    def _take(self, key: Key, flight: _Flight, result: Any, headers: list[Header]) -> None:
        fragment = self.fragments[key[0]]
        if any(header.weight for header in headers):
            self.exchange.finish(fragment, flight.lot, result, headers)
            self.mode.landed(fragment, flight.lot, self._fresh.get(key[0]), result.world_size)
        else:
            flight.lot.mean.zero_()
        if not flight.own.finite:
            fragment.write(fragment.theta)

    def _give_up(self, error: PcclError, attempt: int) -> None:
        """Raises the error unless another attempt is due. It was the same for all peers, and so is this."""
        if isinstance(error, Evicted) or self.use.on_failure == "raise" or attempt >= _RETRIES_MAX:
            raise error

    def _record(self, key: Key, lot: Lot, heads: Any, result: Any, headers: list[Header]) -> None:
        delta_norm, mean_norm, cosine = _compare(lot)
        done = Round(
            fragment=key[0],
            number=key[1],
            step=self.step,
            epoch=result.epoch,
            peers=result.peers,
            excluded=tuple(p for p, header in zip(result.peers, headers, strict=True) if not header.finite),
            retries=self._attempt + result.retries,
            bytes_sent=result.bytes_sent + heads.bytes_sent,
            bytes_received=result.bytes_received + heads.bytes_received,
            delta_norm=delta_norm,
            mean_norm=mean_norm,
            cosine=cosine,
        )
        self._count(done)

    def _count(self, done: Round) -> None:
        self.stats.add(done)
        for hook in self.on_round:
            hook(done)

    def _forget(self, key: Key) -> None:
        lot = self._flights.pop(key).lot
        self.fragments[key[0]].give(lot.delta, lot.mean)

    # -- boundaries --

    def _is_boundary(self, event: Event) -> bool:
        last = event.fragment == len(self.fragments) - 1
        return event.kind == "land" and last and (event.round + 1) % self.use.boundary_every == 0

    def _boundary(self, is_new: bool = False) -> Steps[None]:
        """Newcomers enter, and everything becomes equal. If that cannot be done, all peers go to the next boundary. One
        that `is_new` has nothing yet that could count."""
        again = set(_keys(self._again))
        for attempt in count():
            try:
                yield Call(lambda: self.comm.advance(self.use.timeout_s))
                self._crossed = (self._crossed | set(self.in_flight())) - again
                yield from self._synchronise("receive" if self._missed or is_new else "majority")
                return
            except _AGAIN as error:
                self._give_up(error, attempt)

    def _average(self) -> Steps[None]:
        """Theta and everything of floating type beside it becomes the mean of all replicas'; theta <- Theta."""
        for name, tensor in self._tensors(self.fragments).items():
            if isinstance(tensor, torch.Tensor) and tensor.dtype.is_floating_point:
                tag = f"pccl.optim.mean.{self.position}.{name}"
                yield self.comm.all_reduce(tensor, op="avg", tag=tag, async_op=True, timeout=self.use.timeout_s)
        for fragment in self.fragments:
            fragment.write(fragment.theta)

    def _synchronise(self, strategy: str) -> Steps[None]:
        """Makes everything equal that must be."""
        entries = self.entries()
        yield from self._sync(entries, self.fragments, strategy)
        self._adopt(entries)

    def _settle(self, key: Key, with_tensors: bool) -> Steps[bool]:
        """A fragment that crossed a boundary has landed, or could not: who entered there gets what became of it.
        `with_tensors`: no boundary follows that brings these. True if that took another boundary."""
        self._crossed.discard(key)
        fragments = [self.fragments[key[0]]] if with_tensors and not self.use.drifting else []
        entries = {**self._counters(), **self._tensors(fragments)}
        try:
            yield from self._sync(entries, fragments, "receive" if key in self._missed else "majority")
        except _AGAIN as error:
            self._give_up(error, 0)
            yield from self._boundary()
            return True
        self._adopt(entries)
        return False

    def _sync(self, entries: dict[str, Any], fragments: list[Fragment], strategy: str) -> Steps[None]:
        drifting = tuple(self._tensors(fragments)) if self.use.drifting else ()
        report = yield Call(lambda: self.comm.sync_state(entries, strategy, drifting))
        for index, fragment in enumerate(self.fragments):
            if fragment in fragments:
                fragment.load_outer_state({name: entries[f"outer.{name}"] for name in fragment.outer_state()})
                if f"theta.{index}" in report.entries_received:
                    fragment.write(fragment.theta)
        if len(fragments) == len(self.fragments):
            self.stats.digest = report.digest
        self.stats.repaired_bytes += report.received_bytes
        self.stats.differences = tuple(str(difference) for difference in report.differences)

    def _tensors(self, fragments: Iterable[Fragment]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for index, fragment in enumerate(self.fragments):
            if fragment in fragments:
                found[f"theta.{index}"] = fragment.theta
                found |= {f"outer.{name}": value for name, value in fragment.outer_state().items()}
                found |= {f"mode.{index}.{name}": value for name, value in self.mode.shared(fragment).items()}
        return found


_Outcome = tuple[Any, Any, list[Header]]


def _words(keys: Iterable[Key]) -> str:
    return ",".join(f"{fragment}.{number}" for fragment, number in sorted(keys))


def _keys(words: str) -> list[Key]:
    pairs = (pair.split(".") for pair in words.split(",") if pair)
    return [(int(fragment), int(number)) for fragment, number in pairs]


def _begun(begin: Callable[[], Waits]) -> Waits:
    """An op in flight. With too few peers the call itself fails; that too is the same for all, and told in the end."""
    try:
        return begin()
    except TooFewPeers as error:
        return Call(lambda error=error: _raise(error))  # type: ignore[misc]


def _raise(error: PcclError) -> None:
    raise error


def _collect(flight: _Flight) -> Steps[_Outcome]:
    """Waits for both ops, whatever becomes of the first: they borrow buffers. Gives both results, and the headers in
    the order of the second's peers."""
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


def _compare(lot: Lot) -> tuple[float, float, float]:
    """Norms of delta and mean, and the cosine between them."""
    delta, mean = float(lot.delta.norm()), float(lot.mean.norm())
    cosine = float(torch.dot(lot.delta, lot.mean)) / (delta * mean) if delta and mean else 0.0
    return delta, mean, cosine
