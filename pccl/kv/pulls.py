"""pulls.py - offers of a pool and the pulls of them: who gets what, until when. The thread of transfers alone.

Whoever is told of an offer may be quicker than who makes it: a pull of what was never offered waits for a moment. Or
for longer, where somebody answers pulls by hand: with sends that they open by the pulls' tickets.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pccl.errors import PcclError, ProtocolError
from pccl.kv import messages as m
from pccl.kv.ends import End, State
from pccl.kv.exchange import Exchange
from pccl.kv.handles import Offered
from pccl.kv.leases import Lease, Leases
from pccl.kv.ledger import REQUEST, WRITER, Ledger
from pccl.kv.machine import Stop
from pccl.kv.outbound import Outbound
from pccl.kv.send import Announce, FinishNow
from pccl.kv.ticket import Ticket

__all__ = ["Pulls", "lease_id"]

EARLY_S = 1.0
_EARLY_MAX = 8192
_EARLY_BYTES_MAX = 32 << 20
_NOTES_MAX = 4096


def lease_id(name: str) -> bytes:
    """By which the ledger knows the blocks of an offer."""
    return b"offer/" + name.encode()


def _stem(name: str) -> str:
    return name.partition("/")[0]


def _note(notes: OrderedDict[str, str], stem: str, why: str) -> None:
    """For a while."""
    notes[stem] = why
    if len(notes) > _NOTES_MAX:
        notes.popitem(last=False)


@dataclass(slots=True)
class _Early:
    """A pull of what is not offered yet."""

    name: str
    peer: bytes
    ticket: Ticket
    data: bytes
    until: float

    @property
    def stem(self) -> str:
        """What several pulls of one request have in common."""
        return _stem(self.name)


class Pulls:
    """`make`: a send of a lease's blocks for a ticket; raises PcclError."""

    def __init__(
        self,
        exchange: Exchange,
        ledger: Ledger,
        leases: Leases,
        make: Callable[[Ticket, Lease], Outbound],
        clock: Callable[[], float],
        early_s: float = EARLY_S,
    ) -> None:
        self._clock, self._early_s = clock, early_s
        self._early: dict[bytes, _Early] = {}  # by transfer
        self._stems: dict[str, dict[str, bytes]] = {}  # of those: stem -> name -> ticket; replaced, never changed
        self._early_bytes = 0
        self._declined: OrderedDict[str, str] = OrderedDict()
        self._left: OrderedDict[str, str] = OrderedDict()
        self._exchange, self._ledger, self._leases, self._make = exchange, ledger, leases, make
        self._under_way: dict[bytes, Offered] = {}

    def pulled(self, peer: bytes, message: m.Pull) -> None:
        """A peer wants what is offered by that name."""
        try:
            ticket = Ticket.decode(message.ticket)
        except ProtocolError:
            self._exchange.counters.refused += 1
            return
        lease = self._leases.get(message.offer)
        if ticket.peer != peer:
            self._exchange.refuse(peer, ticket.transfer, "ticket", "the ticket is another peer's")
        elif lease is not None:
            self._begin(peer, ticket, lease)
        elif not self._leases.never(message.offer):
            self._gone(peer, ticket, message.offer)
        elif (why := self._declined.get(_stem(message.offer))) is not None:
            self._exchange.refuse(peer, ticket.transfer, "gone", why)
        elif ticket.transfer in self._early or ticket.transfer in self._exchange.outbound:
            self._exchange.counters.refused += 1  # it came twice
        elif len(self._early) >= _EARLY_MAX or self._early_bytes + len(message.ticket) > _EARLY_BYTES_MAX:
            self._exchange.refuse(peer, ticket.transfer, "no_space", f"{len(self._early)} pulls wait here already")
        else:
            self._wait(_Early(message.offer, peer, ticket, message.ticket, self._clock() + self._wait_s(ticket)))

    def _wait_s(self, ticket: Ticket) -> float:
        return min(self._early_s, max(EARLY_S, ticket.left_s))

    def _wait(self, early: _Early) -> None:
        self._early[early.ticket.transfer] = early
        self._early_bytes += len(early.data)
        self._stems[early.stem] = {**self._stems.get(early.stem, {}), early.name: early.data}
        self._exchange.tick_at(early.until)

    def _forget(self, early: _Early) -> None:
        del self._early[early.ticket.transfer]
        self._early_bytes -= len(early.data)
        left = {name: data for name, data in self._stems[early.stem].items() if data is not early.data}
        if left:
            self._stems[early.stem] = left
        else:
            del self._stems[early.stem]

    # -- for who answers by hand --

    def asked(self, stem: str) -> dict[str, bytes]:
        """See Pool.asked. Any thread."""
        return dict(self._stems.get(stem, {}))

    def left(self, stem: str) -> str:
        """See Pool.left. Any thread."""
        return self._left.get(stem, "")

    def expect(self, stem: str) -> None:
        """See Pool.expect."""
        self._declined.pop(stem, None)
        self._left.pop(stem, None)

    def decline(self, stem: str, why: str) -> None:
        """See Pool.decline."""
        _note(self._declined, stem, why)
        for early in [early for early in self._early.values() if early.stem == stem]:
            self._forget(early)
            self._exchange.refuse(early.peer, early.ticket.transfer, "gone", why)

    def taken(self, transfer: bytes) -> None:
        """Its ticket opens a send."""
        early = self._early.get(transfer)
        if early is not None:
            self._forget(early)

    def ended(self, peer: bytes, message: m.End) -> None:
        """A puller wants it no more."""
        early = self._early.get(message.transfer)
        if early is not None and early.peer == peer:
            self._forget(early)
            _note(self._left, early.stem, f"{message.state} ({message.cause})")

    def lost(self, peer: bytes) -> None:
        """A puller is gone."""
        for early in [early for early in self._early.values() if early.peer == peer]:
            self._forget(early)
            _note(self._left, early.stem, "its peer is lost")

    def offered(self, name: str) -> None:
        """Who came too early gets it now."""
        self._declined.pop(_stem(name), None)
        found = [early for early in self._early.values() if early.name == name]
        for early in found:
            self._forget(early)
            lease = self._leases.get(name)
            if lease is None:
                self._gone(early.peer, early.ticket, name)
            else:
                self._begin(early.peer, early.ticket, lease)

    def _gone(self, peer: bytes, ticket: Ticket, name: str) -> None:
        text = f"{name!r}: {self._leases.why_gone(name)}"
        self._exchange.refuse(peer, ticket.transfer, "gone", text)

    def _begin(self, peer: bytes, ticket: Ticket, lease: Lease) -> None:
        if ticket.transfer in self._exchange.outbound:  # it came twice: an End would end what it has opened
            self._exchange.counters.refused += 1
            return
        try:
            one = self._make(ticket, lease)
        except PcclError as error:
            if not any(wanted.blocks for wanted in ticket.wanted):  # a release, from a cache of another layout
                self.withdraw(lease.name, "it was released")
            self._exchange.refuse(peer, ticket.transfer, getattr(error, "cause", "") or "layout", error.message)
            return
        if not self._leases.fits(peer, one.nbytes):
            self._exchange.forget(one)
            self._exchange.refuse(peer, ticket.transfer, "busy", "the peer holds too much by pulls already")
            return
        self._leases.pulled(lease, one.transfer, peer, one.nbytes)
        self._under_way[one.transfer] = lease.handle
        lease.handle.pulls(1)
        self._exchange.send(one)
        for layer in one.units:
            self._exchange.to_send(one.transfer, Announce(*one.positions(layer, None)))
        self._exchange.to_send(one.transfer, FinishNow(lease.meta))

    def beat(self, transfer: bytes, now: float) -> None:
        """The puller is still there."""
        one = self._exchange.outbound.get(transfer)
        if one is not None and one.offer is not None:
            self._leases.beat(one.offer, now)
            self._exchange.tick_at(self._leases.deadline())

    def tick(self, now: float) -> float:
        """Ends leases whose time is over; gives when the next one's is."""
        for lease in self._leases.expired(now):
            for transfer in list(lease.pulls):
                self._exchange.to_send(transfer, Stop(End(State.EXPIRED, "lease", "the offer's lease is over"), True))
            self._end(lease, "lease")
        for early in [early for early in self._early.values() if early.until <= now]:
            self._forget(early)
            self._gone(early.peer, early.ticket, early.name)
        return min([self._leases.deadline(), *(early.until for early in self._early.values())])

    def sent(self, one: Outbound, end: End) -> None:
        """A send is over, of a pull or not. An offer is good for one pull that commits."""
        if one.offer is None:
            return
        self._leases.over(one.offer, one.transfer)
        self._under_way.pop(one.transfer).pulls(-1)
        if end.state is State.COMMITTED:
            self.withdraw(one.offer, "it has been pulled")

    def withdraw(self, name: str, why: str) -> None:
        """No pull that has not begun gets anything."""
        lease = self._leases.remove(name, why)
        if lease is not None:
            self._end(lease, "withdrawn")

    def close(self) -> None:
        """All of them."""
        for lease in self._leases.all():
            self._leases.remove(lease.name, "the pool was closed")
            self._end(lease, "closed")

    def _end(self, lease: Lease, cause: str) -> None:
        self._ledger.let_go(lease_id(lease.name), REQUEST)
        self._ledger.let_go(lease_id(lease.name), WRITER)
        lease.handle.ended(cause)
