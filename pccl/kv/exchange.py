"""exchange.py - everything of a pool that moves: it takes mail, asks' ends and the time to the machines, and does what
they say. A Task of the thread of transfers, and of that thread alone.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pccl.errors import Closed, PcclError
from pccl.kv import messages as m
from pccl.kv.codecs import CODECS
from pccl.kv.ends import End, State, error_of
from pccl.kv.estimator import Estimate, Watch
from pccl.kv.handles import Sent
from pccl.kv.hasher import Hasher, Job
from pccl.kv.inbound import Inbound
from pccl.kv.ledger import REQUEST, WRITER, Ledger
from pccl.kv.machine import Over, Say, Stop, Tick
from pccl.kv.mail import Regions
from pccl.kv.memory import Memory
from pccl.kv.outbound import Outbound
from pccl.kv.packer import Packer
from pccl.kv.post import Post
from pccl.kv.receive import AskEnded, Check, Checked, Decode, Drop, Landed
from pccl.kv.schedule import Asker, ask_bytes, plan, suggestions, window
from pccl.kv.send import Digest, Expose, Free, Hide, Summed, Withdrawn
from pccl.kv.staging import Staging, give_up_at
from pccl.kv.surroundings import Surroundings
from pccl.transfer.offers import log
from pccl.types import Status

__all__ = ["Counters", "Exchange"]

BEAT_S = 5.0
_TOMBSTONES = 4096


@dataclass(slots=True)
class Counters:
    """Of a pool. `late`: messages and completions of transfers that were over."""

    committed: int = 0
    aborted: int = 0
    expired: int = 0
    failed: int = 0
    late: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Exchange:
    """See the header. `nudge`: has `pump` called soon."""

    def __init__(
        self,
        memory: Memory,
        ledger: Ledger,
        regions: Regions,
        around: Surroundings,
        post: Post,
        tell: Callable[[Callable[[], Any]], None],
        name: str,
        clock: Callable[[], float],
        staging: Staging,
    ) -> None:
        self.deadline_at = float("inf")
        self.over = False
        self.error: PcclError | None = None
        self.counters = Counters()
        self.memory, self.ledger, self.staging = memory, ledger, staging
        self.inbound: dict[bytes, Inbound] = {}
        self.outbound: dict[bytes, Outbound] = {}
        self.watches: dict[bytes, Watch] = {}
        self.told_bytes_per_s: dict[bytes, float] = {}  # that links to there carry, by who receives
        self._clock = clock
        self._regions, self._around, self._post, self._tell = regions, around, post, tell
        self._name = name
        self._hasher = Hasher(f"pccl-kv-{name}")
        self._coder = Hasher(f"pccl-kv-{name}-codec")
        self.packer = Packer(regions, around.when_gone, self._coder, tell, self.event, clock)
        self._beat_at = float("inf")
        self._nudged = False
        self._ends: OrderedDict[bytes, End] = OrderedDict()
        self._stopping: End | None = None
        self.on_closed: Callable[[], None] = lambda: None
        self.on_sent: Callable[[Outbound, End], None] = lambda _out, _end: None
        self.on_beat: Callable[[bytes, float], None] = lambda _transfer, _now: None
        self.on_pull: Callable[[bytes, m.Pull], None] = lambda _peer, _pull: None
        self.on_end: Callable[[bytes, m.End], None] = lambda _peer, _end: None
        self.on_lost: Callable[[bytes], None] = lambda _peer: None
        self.on_tick: Callable[[float], float] = lambda _now: float("inf")
        self._tick_at = float("inf")

    # -- what the pool begins --

    def receive(self, one: Inbound) -> None:
        """A receive that was reserved."""
        self.inbound[one.transfer] = one
        if one.peer is not None:
            one.mail = self._post.to(one.peer)
        if self._stopping is not None:
            self._event(one, Stop(self._stopping, False))

    def send(self, one: Outbound) -> None:
        """A send whose ticket was good."""
        self.outbound[one.transfer] = one
        one.mail = self._post.to(one.peer)
        one.opening = one.machine.begin()
        if self.staging.take(one.transfer, one.staging_bytes, give_up_at(one.since, one.deadline_at)):
            self._open(one)
        else:
            one.machine.lease_until = float("inf")  # the receiver does not know of it yet
        if self._stopping is not None:
            self._event(one, Stop(self._stopping, False))

    def _open(self, one: Outbound) -> None:
        """It has what it needs: the receiver is told, and what the user has said meanwhile counts."""
        try:
            one.regions = one.show(self._regions)
        except MemoryError as error:
            self._event(one, Stop(End(State.FAILED, "no_space", f"no memory to convert into: {error}"), True))
            return
        one.machine.lease_until = self._clock() + one.lease_s
        self._do(one, one.opening)
        for event in one.early:
            self._event(one, event)

    def to_send(self, transfer: bytes, event: Any) -> None:
        """Of a user."""
        one = self.outbound.get(transfer)
        if one is None:
            self.counters.late += 1
        elif self.staging.waits(transfer):
            one.early.append(event)
        else:
            self._event(one, event)

    def forget(self, one: Outbound) -> None:
        """A send that does not begin after all: its blocks are free."""
        self.ledger.let_go(one.transfer, REQUEST)
        self.ledger.let_go(one.transfer, WRITER)

    def stop(self, transfer: bytes, end: End) -> None:
        """Of a user."""
        one = self.inbound.get(transfer) or self.outbound.get(transfer)
        if one is not None:
            self._event(one, Stop(end, True))

    def close(self, end: End) -> None:
        """Everything ends so, also what is yet to come."""
        self._stopping = end
        for one in self._all():
            self._event(one, Stop(end, True))

    def _all(self) -> list[Inbound | Outbound]:
        return [*self.inbound.values(), *self.outbound.values()]

    # -- as a Task --

    def pump(self, now: float) -> None:
        """See Task."""
        self._nudged = False
        for one in self._all():
            if one.deadline() <= now:
                self._event(one, Tick())
        for receive in list(self.inbound.values()):
            receive.hedge(now)
        self._stage(now)
        if self._beat_at <= now:
            self._beat(now)
        if self._tick_at <= now:
            self._tick_at = self.on_tick(now)
        by_peer = self._by_peer()
        for peer, askers in by_peer.items():
            self._ask(peer, askers, now)
        for peer in self.watches.keys() - by_peer.keys():  # the last bytes of a transfer may have ended it
            self.watches[peer].busy(0, 0.0, now)
        self.packer.pump(self.outbound.values(), now)
        self.over = self._stopping is not None and not self.inbound and not self.outbound

    def _stage(self, now: float) -> None:
        """Who waits for room gets it, or has waited for too long."""
        for transfer in self.staging.expired(now):
            text = f"no room to convert into: the pool has {self.staging.most_bytes} bytes for it, in use by others"
            self._event(self.outbound[transfer], Stop(End(State.FAILED, "no_space", text), True))
        if self._stopping is None:
            for transfer in self.staging.admitted():
                self._open(self.outbound[transfer])

    def deadline(self, now: float) -> float:
        """See Task."""
        fixed = self._beat_at, self._tick_at, self.staging.deadline()
        return min(*fixed, min((one.deadline() for one in self._all()), default=float("inf")))

    def on_ended(self, token: int, status: int, now: float) -> None:
        """See Task. It asks for nothing itself."""

    def cancel(self) -> None:
        """See Task."""
        self.close(End(State.FAILED, "closed", "the pool was closed"))

    def fail(self, error: PcclError) -> None:
        """See Task."""
        self.error = error
        cause = "closed" if isinstance(error, Closed) else "lost"
        self.close(End(State.FAILED, cause, error.message))

    def describe(self) -> str:
        """See Task."""
        return f"pool {self._name!r}"

    def tick_at(self, when: float) -> None:
        """Has `on_tick` called then."""
        self._tick_at = min(self._tick_at, when)

    def on_over(self) -> None:
        """See Driven. It is driven no more: the engine may be gone, with all that it read and wrote."""
        for receive in self.inbound.values():
            receive.fenced = True
        self._coder.stop()
        for one in self._all():
            end = one.machine.end or End(State.FAILED, "closed", "the communicator was closed")
            self._over(one, end)
        self._hasher.stop()
        self.on_closed()

    # -- mail --

    def told(self, peer: bytes, message: m.Message) -> None:
        """A message has come."""
        if isinstance(message, m.Pull):
            self.on_pull(peer, message)
        elif isinstance(message, m.Beat):
            self._told_rate(peer, message.rate)
            for transfer in message.transfers:
                self._deliver(self.outbound.get(transfer), peer, message)
                self.on_beat(transfer, self._clock())
        elif isinstance(message, m.Open):
            self._opened(peer, message)
        elif isinstance(message, m.Committed | m.Taken):
            if isinstance(message, m.Committed):
                self._told_rate(peer, message.rate)
            self._deliver(self.outbound.get(message.transfer), peer, message)
        elif isinstance(message, m.End):
            self._their_end(peer, message)
            if message.cause == "closed":
                self._post.leave(peer)
        else:
            self._deliver(self.inbound.get(message.transfer), peer, message)
        self._nudge()

    def lost(self, peer: bytes, cause: str, text: str) -> None:
        """The correspondence with a peer has ended."""
        end = End(State.FAILED, cause, text)
        for one in self._all():
            if one.peer == peer:
                self._event(one, Stop(end, False))
        self.watches.pop(peer, None)
        self.told_bytes_per_s.pop(peer, None)
        self.on_lost(peer)

    def refuse(self, peer: bytes, transfer: bytes, cause: str, text: str) -> None:
        """Says why something does not begin here."""
        self.counters.refused += 1
        self._post.to(peer).say(m.End(transfer, State.FAILED.value, cause, text[: m.TEXT_MAX]))

    def _opened(self, peer: bytes, message: m.Open) -> None:
        one = self.inbound.get(message.transfer)
        if one is None:
            end = self._ends.get(message.transfer)
            why = "there is no such ticket" if end is None else f"it has ended: {end.state.value} ({end.cause})"
            self.refuse(peer, message.transfer, "ticket", why)
        elif one.peer is not None and (one.peer != peer or one.machine.state is not State.RESERVED):
            self.refuse(peer, message.transfer, "ticket", "it has been opened already")
        else:
            one.peer, one.mail = peer, self._post.to(peer)
            one.machine.rate = lambda: self._rate_from(peer)
            self._event(one, message)
            self._beat_at = min(self._beat_at, self._clock() + BEAT_S)

    def _their_end(self, peer: bytes, message: m.End) -> None:
        receive = self.inbound.get(message.transfer)
        if receive is not None and receive.peer is None:  # refused before it was opened, by who has the ticket
            receive.peer = peer
        end = End(State(message.state), message.cause, message.text)
        self.on_end(peer, message)
        self._deliver(receive or self.outbound.get(message.transfer), peer, Stop(end, False))

    def _deliver(self, one: Inbound | Outbound | None, peer: bytes, event: Any) -> None:
        if one is None or one.peer != peer:
            self.counters.late += 1
        else:
            self._event(one, event)

    def _beat(self, now: float) -> None:
        waiting: dict[bytes, list[bytes]] = {}
        for one in self.inbound.values():
            if one.peer is not None:
                waiting.setdefault(one.peer, []).append(one.transfer)
        for peer, transfers in waiting.items():
            self._post.to(peer).say(m.Beat(tuple(transfers), self._rate_from(peer)))
        self._beat_at = now + BEAT_S if waiting else float("inf")

    # -- asking --

    def _by_peer(self) -> dict[bytes, list[Inbound]]:
        found: dict[bytes, list[Inbound]] = {}
        for one in self.inbound.values():
            if one.machine.state is State.STREAMING and one.peer is not None:
                found.setdefault(one.peer, []).append(one)
        return found

    def _ask(self, peer: bytes, askers: list[Inbound], now: float) -> None:
        watch = self.watches.setdefault(peer, Watch())
        peak, rtt_s = watch.peak_bytes_per_s(now), self._around.rtt_s(peer)
        for asker in askers:
            asker.machine.ask_bytes = ask_bytes(peak)
        plan(askers, now, window(peak, rtt_s))
        watch.busy(sum(asker.machine.flowing_bytes for asker in askers), rtt_s, now)
        suggestions(askers, now, watch.peak_bytes_per_s(now), _suggest)

    def estimate(self, peer: bytes) -> Estimate | None:
        """Of the link from a peer; None: nothing has come from there yet."""
        watch = self.watches.get(peer)
        return watch.estimator.estimate(self._clock()) if watch and watch.estimator.bandwidth_bytes_per_s else None

    def _rate_from(self, peer: bytes) -> float:
        watch = self.watches.get(peer)
        return watch.estimator.bandwidth_bytes_per_s if watch is not None else 0.0

    def _told_rate(self, peer: bytes, rate: float) -> None:
        if rate:
            self.told_bytes_per_s[peer] = rate

    # -- what machines say --

    def event(self, one: Inbound | Outbound, event: Any) -> None:
        """From outside of this class: an ask's end, digests, regions that are gone."""
        self._event(one, event)
        if isinstance(event, AskEnded) and isinstance(one, Inbound):
            one.note_progress()
            watch = self.watches.get(one.peer or b"")
            if watch is not None and event.status == Status.OK:
                watch.landed(event.ask.nbytes, self._clock())
        self._nudge()

    def _event(self, one: Inbound | Outbound, event: Any) -> None:
        before = one.machine.late
        self._do(one, one.machine.handle(event, self._clock()))
        self.counters.late += one.machine.late - before

    def _do(self, one: Inbound | Outbound, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Say):
                if one.mail is not None:
                    one.mail.say(effect.message)
            elif isinstance(effect, Over):
                self._over(one, effect.end)
            elif isinstance(one, Inbound):
                self._do_inbound(one, effect)
            else:
                self._do_outbound(one, effect)
        if one.machine.end is not None:
            self.ledger.let_go(one.transfer, REQUEST)
            self.staging.give_up(one.transfer)

    def _do_inbound(self, one: Inbound, effect: Any) -> None:
        unit = getattr(effect, "unit", None)
        if isinstance(effect, Check):
            assert unit is not None
            parts = effect.parts
            expected = unit.sums[parts]

            def checked(found: Any) -> None:
                event = Checked(unit, parts, np.equal(found, expected))
                self._tell(lambda: self.event(one, event))

            if unit.digested:
                checked(unit.found[parts])
                return
            view, of = self.memory.views[unit.here], one.seeds_of(unit, parts)
            self._hasher.put(Job(view, unit.target[parts], unit.part_bytes, of, checked))
        elif isinstance(effect, Decode):
            decode = one.to_decode(effect.ask)

            def decoded() -> None:
                event = decode()
                self._tell(lambda: self.event(one, event))

            self._coder.do(decoded)
        elif isinstance(effect, Drop):
            for token in effect.tokens:
                if one.mail is not None:
                    one.mail.drop(token)
        elif isinstance(effect, Landed):
            one.handle.layer_landed(self.memory.layout.groups[effect.unit.group].layers[effect.unit.layer])

    def _do_outbound(self, one: Outbound, effect: Any) -> None:
        if isinstance(effect, Expose):
            self._expose(one, effect)
        elif isinstance(effect, Digest):

            def summed(sums: Any, effect: Digest = effect) -> None:
                event = Summed(effect.unit, effect.positions, sums)
                self._tell(lambda: self.event(one, event))

            self._digest(one, effect, summed)
        elif isinstance(effect, Free):
            self.packer.do(one, effect)
        elif isinstance(effect, Hide):
            self._hide(one)

    def _expose(self, one: Outbound, effect: Expose) -> None:
        staged = one.to_stage(effect.unit)
        if staged is None:
            one.expose(self._regions, effect.unit, effect.positions)
            return

        def fill() -> None:
            try:
                staged.fill()
            except (PcclError, MemoryError) as error:
                stop = Stop(End(State.FAILED, "no_space", f"a layer could not be converted: {error}"), True)
                self._tell(lambda: self.event(one, stop))
                return
            one.expose(self._regions, effect.unit, effect.positions)

        self._hasher.do(fill)

    def _digest(self, one: Outbound, effect: Digest, summed: Callable[[Any], None]) -> None:
        """Of what the receiver will have: the bytes as they are, if they travel so or without loss."""
        unit, positions = effect.unit, effect.positions
        if CODECS[unit.codec].lossless:
            self._hasher.put(Job(*one.to_hash(unit, positions), summed))
            return

        def step() -> None:
            try:
                sums = one.encode(unit, positions)[1]
            except (PcclError, MemoryError):
                log.exception("digests of KV blocks could not be taken: they count as wrong")
                sums = np.zeros(positions.size, np.uint64)
            summed(sums)

        self._coder.do(step)

    def _hide(self, one: Outbound) -> None:
        self.packer.hide(one)
        left = itertools.count(len(one.regions), -1)

        def gone() -> None:
            if next(left) == 1:
                self._tell(lambda: self.event(one, Withdrawn()))

        if not one.regions:
            self._tell(lambda: self.event(one, Withdrawn()))
        self._around.when_gone(one.regions, gone)
        one.hide(self._regions)

    # -- ends --

    def _over(self, one: Inbound | Outbound, end: End) -> None:
        if self.inbound.pop(one.transfer, None) is None and self.outbound.pop(one.transfer, None) is None:
            return
        self._ends[one.transfer] = end
        if len(self._ends) > _TOMBSTONES:
            self._ends.popitem(last=False)
        self.staging.leave(one.transfer)
        self.ledger.let_go(one.transfer, REQUEST)
        self.ledger.let_go(one.transfer, WRITER)
        setattr(self.counters, end.state.value, getattr(self.counters, end.state.value) + 1)
        one.handle.ended(end)
        if isinstance(one, Inbound):
            self._received(one, end)
        else:
            self._sent(one, end)

    def _received(self, one: Inbound, end: End) -> None:
        if end.state is State.COMMITTED:
            self.counters.received_bytes += one.machine.landed_bytes
        if not one.resolved:
            one.resolve(end, self._clock())

    def _sent(self, one: Outbound, end: End) -> None:
        self.on_sent(one, end)
        if end.state is State.COMMITTED:
            self.counters.sent_bytes += one.nbytes
            one.handle._resolve(Sent(one.nbytes, self._clock() - one.since, one.wire_bytes), None)
        else:
            one.handle._resolve(None, error_of(end, one.peer, f"send of {one.handle.request_id!r}"))

    def _nudge(self) -> None:
        if not self._nudged:
            self._nudged = True
            self._tell(lambda: None)


def _suggest(asker: Asker) -> None:
    assert isinstance(asker, Inbound)
    asker.handle.recompute_suggested = True
