"""Replicas that train on a simulated cluster while something goes wrong, and what must hold of them all.

`play` runs one: a mode, a phase (the moment that it happens in), a fault (what happens), a seed. `findings` compares
the replicas: every round is committed by all who survive, with the same members, mean, Theta and outer state; the mean
is that of what its members had put in when they first sent it; whoever came later held the state before it counted.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from random import Random
from typing import Any

import numpy as np
import torch
from sim.optim_replica import PAUSE_S, SimComm, drive_sim, is_delta
from torch import Tensor, nn

from pccl.errors import Closed, CoordinatorLost, Evicted, PcclError
from pccl.optim.diloco import _assemble
from pccl.optim.engine import OuterSync
from pccl.optim.exchange import Header, Lot
from pccl.optim.flights import Flights
from pccl.optim.fragments import Schedule
from pccl.optim.master import Fragment
from pccl.optim.modes import Mode
from pccl.optim.outer import HeavyBall, Nesterov
from pccl.optim.rounds import Key
from pccl.optim.settings import resolve
from pccl.optim.sparse_codec import accumulate
from pccl.optim.stats import Round
from pccl.testing import Cluster, Faults, Options, SimPeer
from pccl.testing.coordinator import MOMENTS

PEERS = 3
EVERY = 4
STEPS = 18
SIZES = (7, 9)  # of the parameters, a fragment each where there are two
STEP_S = 0.01
DELAY_S = 0.001
LEASE_S = 1.0
GOSSIP_BOUNDARY_EVERY = 2
GRACE_S = 1.0  # after its deadline, until the coordinator's word is everywhere
SPARSE = (2, 16, 0.9)

MODES: dict[str, dict[str, Any]] = {
    "diloco": {"mode": "diloco", "outer": Nesterov(0.7, 0.9)},
    "streaming": {"mode": "streaming", "fragments": 2, "overlap": 1, "merge": 0.5},
    "streaming_full": {"mode": "streaming", "fragments": 2, "overlap": "full"},
    "delayed": {"mode": "delayed", "outer": HeavyBall(0.5, 0.3)},
    "sparse": {"mode": "sparse", "sparse": SPARSE},
    "eager": {"mode": "eager", "resync_every": 2},
    "gossip": {"mode": "gossip"},
    "diloco_local": {"mode": "diloco", "on_failure": "local"},
    "diloco_raise": {"mode": "diloco", "on_failure": "raise"},
    "streaming_local": {"mode": "streaming", "fragments": 2, "overlap": 1, "on_failure": "local"},
    "streaming_raise": {"mode": "streaming", "fragments": 2, "overlap": 1, "on_failure": "raise"},
}
DRIFTING = ("eager", "gossip")  # replicas are equal in the end only, by consensus()


@dataclass
class Noted:
    """One committed round as one replica has it."""

    done: Round
    mean: Tensor
    state: str  # digest of the fragment's Theta and outer state, after the outer step


@dataclass
class Replica:
    """What became of one replica."""

    index: int
    comm: SimComm
    run: int  # when all have left, whoever waits begins another
    rounds: dict[Key, Noted] = field(default_factory=dict)
    means: dict[int, Tensor] = field(default_factory=dict)  # of fragments, as they landed last
    states: dict[tuple[int, str], str] = field(default_factory=dict)  # by position, and what has landed before it
    entered: int = -1  # the position after that; -1: not yet
    holds: bool = False  # the state
    too_early: list[str] = field(default_factory=list)  # ops of the optimizer that were begun before
    repaired: list[str] = field(default_factory=list)  # what boundaries repaired after that
    end: str = ""  # "done", "out", or an error


# -- one replica -----------------------------------------------------------------------------------------------------


class Training:
    """A program for Cluster.add; keeps all its replicas."""

    def __init__(self, cluster: Cluster, mode: str, timeout_s: float | None) -> None:
        self.cluster, self.options, self.timeout_s = cluster, MODES[mode], timeout_s
        self.drifts = mode in DRIFTING
        self.waits_for_all = cluster.options.min_peers > 1  # who leaves stops the others
        self.replicas: list[Replica] = []

    async def __call__(self, peer: SimPeer) -> None:
        def tell(what: str, *facts: object) -> None:
            self.cluster.trace("replica", peer.index, what, *facts)

        comm = SimComm(peer, tell)
        replica = Replica(peer.index, comm, peer.index)
        self.replicas.append(replica)
        try:
            await self._train(peer, replica, tell)
            replica.end = "done"
            while self.waits_for_all and any(not one.end for one in self.replicas if one.comm.peer_id in peer.peers):
                await peer.compute(STEP_S)
            await peer.leave()
        except (Evicted, Closed, CoordinatorLost):
            replica.end = replica.end or "out"
        except PcclError as error:
            replica.end = repr(error)
            if self.options.get("on_failure") == "raise":
                await peer.leave()

    async def _train(self, peer: SimPeer, replica: Replica, tell: Callable[..., None]) -> None:
        parameters, comm = _parameters(peer.index), replica.comm
        sync = _assemble(parameters, comm, _config(self.options, self.timeout_s), lambda steps: 1.0)
        sync.on_round.append(lambda done: _note(replica, sync, done))
        if isinstance(sync.rounds, Flights):
            sync.rounds._mode = _Watched(sync.rounds._mode, sync, replica.means)
        comm.synced = lambda report: _synced(replica, sync, report.entries_received)
        await drive_sim(comm, sync.enter())
        replica.run = self._run(peer, sync.position)
        replica.entered = sync.position
        self._state(replica, sync)
        while sync.step < STEPS:
            await peer.compute(STEP_S * (0.5 + peer.random.random()))
            tell("step", sync.step + 1)
            for number, (_, parameter) in enumerate(parameters):
                parameter.data -= 0.1 * _gradient(peer.index, sync.step, number)
            await drive_sim(comm, sync.stepped())
            self._state(replica, sync)
        await drive_sim(comm, sync.consensus() if self.drifts else sync.flush())
        _state(replica, sync)

    def _state(self, replica: Replica, sync: OuterSync) -> None:
        if not self.drifts:
            _state(replica, sync)

    def _run(self, peer: SimPeer, position: int) -> int:
        """Who begins together is a run, named by the first of them; who comes later is of the others' run."""
        mates = [one for one in self.replicas if one.comm.peer_id in peer.peers]
        if position == 0:
            return min(one.index for one in mates if not one.end)
        return next((one.run for one in reversed(mates) if one.entered >= 0), peer.index)


class _Watched:
    """A mode, with a copy of every mean that comes to it."""

    def __init__(self, mode: Mode, sync: OuterSync, means: dict[int, Tensor]) -> None:
        self.sent, self.shared = mode.sent, mode.shared
        self._mode, self._sync, self._means = mode, sync, means

    def landed(self, fragment: Fragment, lot: Lot, fresh: Tensor | None, world: int) -> None:
        self._means[self._sync.fragments.index(fragment)] = lot.mean.clone()
        self._mode.landed(fragment, lot, fresh, world)


def _note(replica: Replica, sync: OuterSync, done: Round) -> None:
    key = (done.fragment, done.number)
    mean = replica.means.pop(done.fragment, torch.zeros(sync.fragments[done.fragment].numel))
    state = "" if sync.use.drifting else _digest(sync, [done.fragment])
    replica.rounds[key] = Noted(done, mean, state)
    replica.comm.tell("round", *key)


def _synced(replica: Replica, sync: OuterSync, repaired: tuple[str, ...]) -> None:
    if replica.holds:
        replica.repaired += repaired
    else:
        replica.holds = True
        replica.too_early = [tag for tag in replica.comm.sent if tag.startswith("pccl.optim")]


def _state(replica: Replica, sync: OuterSync) -> None:
    """Equal on all that are at the same position: after every inner step, or in the end."""
    landed = repr(sorted(sync.landed))
    replica.states[sync.position, landed] = _digest(sync, list(range(len(sync.fragments))))


def _parameters(seed: int) -> list[tuple[str, nn.Parameter]]:
    numbers = np.random.RandomState(seed)
    return [
        (f"blocks.{block}.w", nn.Parameter(torch.from_numpy(numbers.standard_normal(size).astype("f4"))))
        for block, size in enumerate(SIZES)
    ]


@cache
def _gradient(index: int, step: int, number: int) -> Tensor:
    numbers = np.random.RandomState(10_000 * index + 100 * number + step)
    return torch.from_numpy(numbers.standard_normal(SIZES[number]).astype("f4"))


def _config(options: dict[str, Any], timeout_s: float | None) -> Any:
    defaults: dict[str, Any] = {
        "outer": None, "fragments": None, "overlap": None, "merge": 0.0, "codec": None, "aggregate": "mean",
        "mixing": None, "sparse": None, "staleness_penalty": 0.0, "resync_every": None, "on_failure": "retry",
    }  # fmt: skip
    config = resolve(every=EVERY, timeout=timeout_s, offload=True, **{**defaults, **options})
    return replace(config, boundary_every=min(config.boundary_every, GOSSIP_BOUNDARY_EVERY))


def _digest(sync: OuterSync, fragments: list[int]) -> str:
    """Of Theta and of the outer state."""
    digest = hashlib.blake2b(digest_size=8)
    for index in fragments:
        fragment = sync.fragments[index]
        digest.update(fragment.theta.numpy().tobytes())
        for name, value in fragment.outer_state().items():
            digest.update(name.encode())
            digest.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return digest.hexdigest()


# -- what goes wrong -------------------------------------------------------------------------------------------------

PHASES = ("inner", "sent", "reducing", "reduced", "stepped", "flying", "flushing", "downloading")
FAULTS = ("die", "hang", "slow", "join", "rejoin", "two_joins", "join_die", "restart", "overdue", "too_few")
HANG_S = 2.0
SHORT_TIMEOUT_S = 0.2
OVERDUE_S = 0.5


@dataclass
class Play:
    """One run."""

    mode: str
    phase: str
    fault: str
    seed: int

    def __post_init__(self) -> None:
        self.random = Random(f"{self.mode}:{self.phase}:{self.fault}:{self.seed}")
        few = PEERS if self.fault == "too_few" else 1
        self.cluster = Cluster(self.seed, Options(min_peers=few, lease_s=LEASE_S))
        self.cluster.watch.overdue_expected = self.fault == "overdue"
        self.faults = Faults(self.cluster)
        self.training = Training(self.cluster, self.mode, SHORT_TIMEOUT_S if self.fault == "overdue" else None)
        self.victim = self.random.randrange(PEERS)
        self.struck = False

    def run(self) -> list[str]:
        """Plays it; gives what is wrong."""
        try:
            for _ in range(PEERS):
                self.cluster.add(self.training)
            self.cluster.form_with(PEERS)
            self._plan()
            ended = self.cluster.run(60.0)
            broken = [f"{one.promise} {one.detail}" for one in self.cluster.watch.finish()]
            return ([] if ended else ["it does not end"]) + broken + findings(self)
        finally:
            self.cluster.close()

    def _plan(self) -> None:
        """Waits for the moment."""
        random, victim = self.random, self.victim
        fragment, number = random.randrange(MODES[self.mode].get("fragments", 1)), random.randint(1, 2)
        if self.phase == "downloading":
            self.faults.when("replica", victim, "step", random.randint(2, 10), then=self._join)
            if self.fault in ("die", "hang", "slow", "rejoin") and random.random() < 0.5:
                self.victim = PEERS  # the newcomer itself
            what, after_s = (PEERS, "download"), random.uniform(0.0, 4 * DELAY_S)
        elif self.phase == "inner":
            what, after_s = (victim, "step", random.randint(2, STEPS - 4)), random.uniform(0.0, STEP_S / 2)
        elif self.phase == "flushing":
            what, after_s = (
                (victim, "step", STEPS),
                random.uniform(0.0, (2 if self.fault == "too_few" else 5) * DELAY_S),
            )
        else:
            first, last = _WINDOWS[self.phase]
            word = {"reduced": "reduced", "stepped": "round"}.get(self.phase, "sent")
            place = () if self.mode == "gossip" else (fragment, number)  # not everybody has a partner in every round
            what, after_s = (victim, word, *place), random.uniform(first, last)
        self.faults.when("replica", *what, then=self._strike, after_s=after_s)

    def _join(self) -> None:
        self.faults.join(self.training)

    def _strike(self) -> None:
        self.struck = True
        getattr(self, f"_{self.fault}")()

    def _die(self) -> None:
        self.faults.crash(self.victim)

    def _hang(self) -> None:
        self.faults.freeze(self.victim, HANG_S)

    def _slow(self) -> None:
        self.faults.slow(self.victim, 0.02, 1.0)

    def _rejoin(self) -> None:
        self.faults.crash(self.victim)
        self.faults.at(0.02, self._join)

    def _two_joins(self) -> None:
        self._join()
        self.faults.at(self.random.choice((0.0, 0.005, 0.05)), self._join)

    def _join_die(self) -> None:
        newcomer = len(self.cluster.nodes)
        self._join()
        victim = self.random.choice((self.victim, newcomer))
        self.faults.at(self.random.uniform(0.0, 0.06), lambda: self.faults.crash(victim))

    def _restart(self) -> None:
        self.faults.restart(self.random.choice((0.005, 0.1, 0.6, 2.0)), self.random.choice(MOMENTS))

    def _overdue(self) -> None:
        """Longer than a deadline, shorter than its lease: the round is lost and begun again; somebody enters then."""
        self.faults.freeze(self.victim, OVERDUE_S)
        if self.random.random() < 0.5:
            self._join()

    def _too_few(self) -> None:
        self.faults.crash(self.victim)
        if MODES[self.mode].get("on_failure") != "raise":
            self.faults.at(0.3, self._join)


#: Seconds after a fragment was sent, its mean had come, or the outer step was made.
_WINDOWS = {
    "sent": (0.0, 0.0),
    "reducing": (DELAY_S / 2, 3 * DELAY_S),
    "reduced": (0.0, PAUSE_S),
    "stepped": (0.0, PAUSE_S),
    "flying": (0.0, STEP_S / 2),
}


# -- what must hold --------------------------------------------------------------------------------------------------


def findings(play: Play) -> list[str]:
    """What does not hold of the replicas."""
    training = play.training
    if not play.struck:
        return ["nothing has happened"]
    found = list(_ends(play))
    for run in {one.run for one in training.replicas}:
        replicas = [one for one in training.replicas if one.run == run]
        survivors = [one for one in replicas if one.end == "done"]
        agreement = _pairs(replicas) if play.mode == "gossip" else [*_agreement(replicas), *_means(play, replicas)]
        found += [*agreement, *_equality(replicas), *_completeness(play, survivors),
                  *_newcomers(replicas), *_waits(play, survivors)]  # fmt: skip
    return found


def _ends(play: Play) -> Iterator[str]:
    if MODES[play.mode].get("on_failure") == "raise":
        alive = [one for one in play.training.replicas if play.cluster.nodes[one.index].alive]
        if len({one.end.split("(")[0] for one in alive}) > 1:
            yield f"not all end alike: {[one.end for one in alive]}"
        return
    for one in play.training.replicas:
        node = play.cluster.nodes[one.index]
        hung = play.fault == "hang" and one.index == play.victim
        if node.alive and one.end != "done" and not (hung and one.end == "out"):
            yield f"replica {one.index} ended with {one.end or 'nothing'}"


def _agreement(replicas: list[Replica]) -> Iterator[str]:
    """Whoever has a round, has the same."""
    rounds: dict[Key, set[object]] = defaultdict(set)
    for one in replicas:
        for key, noted in one.rounds.items():
            done = noted.done
            rounds[key].add((done.peers, done.epoch, done.excluded, noted.state, noted.mean.numpy().tobytes()))
    yield from (f"round {key} is not the same on all" for key, found in rounds.items() if len(found) > 1)


def _pairs(replicas: list[Replica]) -> Iterator[str]:
    """Whoever has met another in a round, was met by it, if that has come to the end."""
    done = {one.comm.peer_id: one for one in replicas if one.end == "done"}
    for own, one in done.items():
        for key, noted in one.rounds.items():
            for peer in noted.done.peers:
                if peer in done and peer != own and own not in done[peer].rounds[key].done.peers:
                    yield f"replica {one.index} has met one in round {key} that has not met it"
    pairs = sum(len(noted.done.peers) == 2 for one in replicas for noted in one.rounds.values())
    if len(replicas) >= PEERS and not pairs:
        yield "nobody has met anybody"


def _equality(replicas: list[Replica]) -> Iterator[str]:
    """Whoever is at a position, holds the same."""
    states: dict[object, set[str]] = defaultdict(set)
    for one in replicas:
        for place, state in one.states.items():
            states[place].add(state)
    yield from (f"at position {place} not all hold the same" for place, found in states.items() if len(found) > 1)


def _completeness(play: Play, survivors: list[Replica]) -> Iterator[str]:
    """Every round that was due is committed on everybody who was there, in order, and nothing was ever repaired."""
    due, on_failure = _due(play), play.training.options.get("on_failure", "retry")
    first = [one for one in survivors if not one.entered]
    dropped = {
        of: {number for _, number in due} - {n for one in first for f, n in one.rounds if f == of} for of, _ in due
    }
    for one in survivors:
        for fragment in {key[0] for key in due}:
            numbers = [number for of, number in one.rounds if of == fragment]
            wanted = sorted(number for of, number in due if of == fragment)
            if play.mode == "gossip":
                wanted = [number for number in wanted if numbers and number >= (numbers[0] if one.entered > 0 else 0)]
            elif one.entered > 0:  # it misses what it found in flight
                wanted = _part_of(one, fragment, wanted)
            if on_failure != "retry":
                wanted = [number for number in wanted if number not in dropped[fragment]]
            if numbers != wanted:
                yield f"replica {one.index} has rounds {numbers} of fragment {fragment}, not {wanted}"
        learned = _LEARNED if one.entered > 0 else ()
        if wrong := [name for name in one.repaired if not name.startswith(learned)]:
            yield f"replica {one.index} had to be repaired: {wrong}"


#: What a newcomer is told of what it had no part in.
_LEARNED = ("theta.", "outer.", "mode.", "position", "landed", "again", "attempt", "averaged")


def _part_of(one: Replica, fragment: int, due: list[int]) -> list[int]:
    """What a newcomer has part in: what it helps to repeat, and all from the first round on that it counts in."""
    heads = [tag for tag in one.comm.sent if tag.startswith(f"pccl.optim.{fragment}.") and tag.endswith(".head")]
    counted = [_key(tag)[1] for tag in heads if _header(one, tag).weight]
    return sorted({_key(tag)[1] for tag in heads} | {number for number in due if counted and number >= min(counted)})


def _due(play: Play) -> list[Key]:
    config = _config(play.training.options, None)
    schedule = Schedule(EVERY, play.training.options.get("fragments", 1), config.overlap)
    events = takewhile(lambda event: event.at_step <= STEPS, schedule.events())
    return [(event.fragment, event.round) for event in events if event.kind == "send"]


def _means(play: Play, replicas: list[Replica]) -> Iterator[str]:
    """The mean is that of what its members had put in first, whatever became of the first attempt."""
    sizes = SIZES if MODES[play.mode].get("fragments", 1) > 1 else (sum(SIZES),)
    by_id = {one.comm.peer_id: one for one in replicas}
    for one in replicas:
        for key, noted in one.rounds.items():
            peers = noted.done.peers
            if one.comm.peer_id not in peers:
                yield f"replica {one.index} took no part in its own round {key}"
            total, weights = np.zeros(sizes[key[0]]), 0.0
            for peer in peers:
                if peer not in by_id:
                    yield f"round {key} has a member of another run"
                    continue
                payload, weight = _first(by_id[peer], key)
                if weight:
                    total, weights = total + weight * _values(play.mode, payload, sizes[key[0]]), weights + weight
            mean = noted.mean.double().numpy()
            if not np.allclose(mean, total / max(weights, 1e-9), rtol=1e-5, atol=1e-6):
                yield f"the mean of round {key} at replica {one.index} is not that of its members' deltas"
    for one in replicas:
        payloads: dict[Key, set[bytes]] = defaultdict(set)
        for tag, data in one.comm.sent.items():
            if is_delta(tag):
                payloads[_key(tag)].add(data)
        if changed := [key for key, found in payloads.items() if len(found) > 1]:
            yield f"replica {one.index} did not send the same deltas again: {changed}"


def _key(tag: str) -> Key:
    fragment, number = tag.split(".")[2:4]
    return int(fragment), int(number)


def _first(one: Replica, key: Key) -> tuple[bytes, float]:
    """What a replica put in when it first sent a fragment, and its weight."""
    payload = next(tag for tag in one.comm.sent if is_delta(tag) and _key(tag) == key)
    return one.comm.sent[payload], _header(one, f"{payload}.head").weight


def _header(one: Replica, tag: str) -> Header:
    return Header.unpack(torch.frombuffer(bytearray(one.comm.sent[tag]), dtype=torch.uint8))


def _values(mode: str, payload: bytes, size: int) -> Any:
    if mode != "sparse":
        return np.frombuffer(payload, "f4").astype("f8")
    row = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return accumulate([row], [1.0], size, SPARSE[0], SPARSE[1]).double().numpy()


def _newcomers(replicas: list[Replica]) -> Iterator[str]:
    """Nobody sends anything before it holds the state, nor counts before it has made a step from there."""
    for one in replicas:
        if one.too_early:
            yield f"replica {one.index} sent {one.too_early} before it held the state"
        headers = {tag: _header(one, tag) for tag in one.comm.sent if tag.endswith(".head")}
        if idle := [tag for tag, header in headers.items() if header.weight and not header.steps]:
            yield f"replica {one.index} counted in {idle} without a step"


def _waits(play: Play, survivors: list[Replica]) -> Iterator[str]:
    """Nobody who was not held up itself waits longer than the deadline of what it waits for."""
    for one in survivors:
        if one.index != play.victim and play.fault != "restart":
            yield from (
                f"replica {one.index}: {wait}" for wait in one.comm.waits if wait.seconds > wait.timeout + GRACE_S
            )
