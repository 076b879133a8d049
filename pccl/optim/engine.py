"""engine.py - OuterSync: when fragments are sent and land, who takes part, and how a newcomer gets into step.

The schedule (fragments.py) numbers the events of a run: fragment p is sent, fragment p lands. `position` is the number
of the next one, equal on all peers between two events; a peer reaches an event by its own count of inner steps, so
peers that skipped some (GradScaler) only come later. What is in flight follows from the position alone.

* send: delta <- Theta - theta starts on its way (flights.py; in pairs: gossip.py). Where a fragment lands and is sent
  again in one step, the delta is taken before the landing, and travels after it.
* land: what has come of it makes the outer update. A round that could not be done is begun again, with the same delta,
  after the next boundary: it is committed by all who survive, or by none, and on all shards of a replica (shards.py).
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

from pccl.errors import Cancelled, Evicted, PcclError
from pccl.optim.fragments import Event, Schedule
from pccl.optim.line import Call, Comm, Steps
from pccl.optim.master import Fragment
from pccl.optim.rounds import AGAIN, Key, Rounds
from pccl.optim.shards import APART, DONE, FAILED, OVER, Shards
from pccl.optim.stats import Round, Stats

__all__ = ["OuterSync", "Use"]

_RETRIES_MAX = 16
_IDLE = _NEVER = -1


@dataclass(frozen=True, slots=True)
class Use:
    """What OuterSync must know besides its parts.

    `on_failure`: of a round that cannot be done: "retry", "local" (it is dropped, everybody goes on from its own
    parameters) or "raise". `timeout_s`: of one op; None: the communicator's. `boundary_every`: periods from one
    boundary to the next. `drifting`: replicas differ by design, and only a newcomer takes over somebody's parameters.
    `resync_every`: periods between two averages of replicas that drift, 0 for never.
    """

    on_failure: str = "retry"
    timeout_s: float | None = None
    boundary_every: int = 1
    drifting: bool = False
    resync_every: int = 0


class OuterSync:
    """One replica's part in the outer optimization. Not thread-safe."""

    def __init__(
        self, comm: Comm, fragments: list[Fragment], schedule: Schedule, rounds: Rounds, use: Use, shards: Shards
    ) -> None:
        self.comm, self.fragments, self.schedule = comm, fragments, schedule
        self.rounds, self.use, self.shards = rounds, use, shards
        self.position = 0
        self.step = 0  # inner steps on the run's scale: a newcomer begins at the others'
        self.landed: set[Key] = set()  # before their event, by flush
        self.stats = Stats()
        self.on_round: list[Callable[[Round], None]] = []
        self.inner_steps = [0] * len(fragments)  # made here since a fragment was last sent
        self._missed: set[Key] = set()  # under way when this peer entered
        self._crossed: set[Key] = set()  # under way at some boundary
        self._again = ""  # the fragment and round that is begun again
        self._flushing = False  # what lands now does so before its event
        self._averaged = _IDLE  # fragments of which the mean is taken, while means are taken
        self._came_at = _NEVER  # the position at which this peer entered, if amid the others' consensus
        self._attempt = 0
        self._seat = comm.peer_id.hex()  # differs until the first sync, so that all take over one peer's beginnings

    # -- what the faces call --

    def enter(self) -> Steps[None]:
        """The first thing a replica does in a run: gets what the others have, or proves that all begin alike."""
        try:
            yield from self._agreed(self._synchronise("majority"))
        except AGAIN as error:
            self._give_up(error, 0)
            yield from self._boundary(is_new=self.comm.entered > 0)
        self.step = self.schedule.event(self.position - 1).at_step if self.position else 0
        self._missed = set(self.in_flight())
        for key in _keys(self._again):  # the others repeat a round: so does this peer
            self._begin_again(key)
        if self._flushing:
            yield from self.flush()
            if self._averaged != _IDLE:
                yield from self._average(0.0)
                self._came_at = self.position
            return
        if self._averaged != _IDLE:
            yield from self._average(0.0)
            yield from self._boundary()
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
        self._flushing = self._averaged != _IDLE

    def consensus(self) -> Steps[None]:
        """Lands what is in flight, then makes replicas that drift equal: their mean. Every peer calls it after the same
        number of steps; of who entered amid it, it is done."""
        if self._came_at == self.position:
            self._came_at = _NEVER
            for fragment in self.fragments:
                fragment.write(fragment.theta)
            return
        self._averaged = 0
        yield from self.flush()
        yield from self._average(1.0)

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
            "averaged": self._averaged,
            "landed": _words(self.landed),
            "crossed": _words(self._crossed),
            "seat": self._seat,
        }

    def _adopt(self, entries: dict[str, Any]) -> None:
        self.position, self._attempt, self._again = entries["position"], entries["attempt"], entries["again"]
        self._flushing, self._averaged, self._seat = entries["flushing"], entries["averaged"], entries["seat"]
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
                steps, self.inner_steps[event.fragment] = self.inner_steps[event.fragment], 0
                yield from self.rounds.send(key, steps)
            self.landed.discard(key)
            self.position += 1
        if is_boundary and not just_passed:
            if self.use.resync_every and (event.round + 1) % self.use.resync_every == 0:
                self._averaged = 0
                yield from self._average(1.0)
            yield from self._boundary()
        if event.kind == "land":
            self._missed.discard(key)

    def _look_ahead(self, event: Event) -> None:
        if self.schedule.overlap == self.schedule.every and self.inner_steps[event.fragment]:
            self.rounds.look_ahead(event.fragment)

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
        self._missed.discard(key)
        self.rounds.again(key, self._attempt)

    def _committed(self, key: Key) -> Steps[bool]:
        """Lands what has come. False if that could not be done, on any peer."""
        try:
            yield from self._agreed(self.rounds.arrive(key))
        except AGAIN as error:
            self._give_up(error, self._attempt)
            if self.use.on_failure != "local":
                self._attempt, self._again = self._attempt + 1, _words([key])
                return False
            self.rounds.drop(key)
            self.stats.dropped += 1
        else:
            done = self.rounds.land(key, self.step, self._attempt)
            self.stats.add(done)
            for hook in self.on_round:
                hook(done)
        self._attempt, self._again = 0, ""
        return True

    def _give_up(self, error: PcclError, attempt: int) -> None:
        """Raises the error unless another attempt is due. It was the same for all peers, and so is this."""
        if isinstance(error, Evicted) or self.use.on_failure == "raise" or attempt >= _RETRIES_MAX:
            raise error

    def _agreed(self, steps: Steps[int]) -> Steps[None]:
        """One attempt at something, which succeeds on all shards of this replica, and alike (its digest), or on none:
        raises its own error, or Cancelled for another shard's."""
        state, digest, failed = DONE, 0, None
        try:
            digest = yield from steps
        except PcclError as error:
            failed, state = error, FAILED if isinstance(error, AGAIN) and not isinstance(error, Evicted) else OVER
        verdict = yield from self.shards.agree(state, digest)
        if failed is not None and (verdict == state or state == OVER):
            raise failed
        if verdict == OVER:
            raise PcclError("another shard of this replica cannot go on")
        if verdict in (FAILED, APART):
            how = "failed on another shard" if verdict == FAILED else "had other members on another shard"
            raise Cancelled(f"a round or boundary {how} of this replica")

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
                yield from self._agreed(self._pass_boundary(again, is_new))
                return
            except AGAIN as error:
                self._give_up(error, attempt)

    def _pass_boundary(self, again: set[Key], is_new: bool) -> Steps[int]:
        yield Call(lambda: self.comm.advance(self.use.timeout_s))
        self._crossed = (self._crossed | set(self.in_flight())) - again
        return (yield from self._synchronise("receive" if self._missed or is_new else "majority"))

    def _average(self, weight: float) -> Steps[None]:
        """Theta and everything of floating type beside it becomes the mean of all replicas', fragment by fragment;
        theta <- Theta. What cannot be done is done again after a boundary; who enters there helps, with weight 0."""
        for attempt in count():
            try:
                while self._averaged < len(self.fragments):
                    yield from self._average_fragment(self.fragments[self._averaged], weight)
                    self._averaged += 1
                break
            except AGAIN as error:
                self._give_up(error, attempt)
                yield from self._boundary()
        self._averaged, self._flushing = _IDLE, False

    def _average_fragment(self, fragment: Fragment, weight: float) -> Steps[None]:
        values = self._tensors([fragment]).values()
        kept = [value for value in values if isinstance(value, torch.Tensor) and value.dtype.is_floating_point]
        flat = torch.cat([*(tensor.float().flatten() for tensor in kept), fragment.theta.new_ones(1)]) * weight
        summed = torch.empty_like(flat)
        yield from self._agreed(self._sum(flat, summed))
        if summed[-1]:
            parts = torch.split(summed[:-1] / summed[-1], [tensor.numel() for tensor in kept])
            for tensor, part in zip(kept, parts, strict=True):
                tensor.copy_(part.view(tensor.shape))
        fragment.write(fragment.theta)

    def _sum(self, flat: torch.Tensor, out: torch.Tensor) -> Steps[int]:
        tag = f"pccl.optim.mean.{self.position}.{self._averaged}"
        yield self.comm.all_reduce(flat, op="sum", out=out, tag=tag, async_op=True, timeout=self.use.timeout_s)
        return 0

    def _synchronise(self, strategy: str) -> Steps[int]:
        """Makes everything equal that must be."""
        entries = self.entries()
        yield from self._sync(entries, self.fragments, strategy)
        self._adopt(entries)
        yield from self.rounds.passed()
        return 0

    def _settle(self, key: Key, with_tensors: bool) -> Steps[bool]:
        """A fragment that crossed a boundary has landed, or could not: who entered there gets what became of it.
        `with_tensors`: no boundary follows that brings these. True if that took another boundary."""
        self._crossed.discard(key)
        fragments = [self.fragments[key[0]]] if with_tensors and not self.use.drifting else []
        entries = {**self._counters(), **self._tensors(fragments)}
        try:
            yield from self._agreed(self._sync(entries, fragments, "receive" if key in self._missed else "majority"))
        except AGAIN as error:
            self._give_up(error, 0)
            yield from self._boundary()
            return True
        self._adopt(entries)
        return False

    def _sync(self, entries: dict[str, Any], fragments: list[Fragment], strategy: str) -> Steps[int]:
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
        return 0

    def _tensors(self, fragments: Iterable[Fragment]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for index, fragment in enumerate(self.fragments):
            if fragment in fragments:
                found[f"theta.{index}"] = fragment.theta
                found |= {f"outer.{name}": value for name, value in fragment.outer_state().items()}
                found |= {f"mode.{index}.{name}": value for name, value in self.rounds.shared(fragment).items()}
        return found


def _words(keys: Iterable[Key]) -> str:
    return ",".join(f"{fragment}.{number}" for fragment, number in sorted(keys))


def _keys(words: str) -> list[Key]:
    pairs = (pair.split(".") for pair in words.split(",") if pair)
    return [(int(fragment), int(number)) for fragment, number in pairs]
