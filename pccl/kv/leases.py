"""leases.py - what is offered to be pulled, until when, and how much one peer may hold. Pure; the time is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pccl.errors import ArgumentError
from pccl.kv.handles import Offered
from pccl.kv.memory import Ids
from pccl.kv.ticket import CodecWish

__all__ = ["BYTES_PER_PEER", "HOLD_S", "Lease", "Leases"]

LEASE_S = 30.0
EXTEND_S = 20.0
HOLD_S = 600.0
BYTES_PER_PEER = 64 << 30
_GONE_MAX = 4096


@dataclass(slots=True)
class Lease:
    """One offer. `pulls`: transfers of it that are under way; `codec`: by which it may travel."""

    name: str
    blocks: list[Ids]
    hashes: list[Sequence[Any] | None]
    meta: bytes
    handle: Offered
    until: float
    most: float
    pulls: set[bytes] = field(default_factory=set)
    codec: CodecWish = "auto"


class Leases:
    """The offers of a pool, by name. `bytes_per_peer`: that one peer may hold by pulls at a time."""

    def __init__(self, bytes_per_peer: int = BYTES_PER_PEER) -> None:
        self._bytes_per_peer = bytes_per_peer
        self._leases: dict[str, Lease] = {}
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._held: dict[bytes, tuple[bytes, int]] = {}  # transfer -> peer, bytes

    def add(self, lease: Lease) -> None:
        """ArgumentError: the name is taken."""
        if lease.name in self._leases:
            raise ArgumentError(f"{lease.name!r} is offered here already")
        self._gone.pop(lease.name, None)
        self._leases[lease.name] = lease

    def get(self, name: str) -> Lease | None:
        """What is offered by that name."""
        return self._leases.get(name)

    def never(self, name: str) -> bool:
        """Whether nothing was offered by that name, as far as is known."""
        return name not in self._leases and name not in self._gone

    def why_gone(self, name: str) -> str:
        """In words."""
        return self._gone.get(name, "nothing was offered by that name")

    def fits(self, peer: bytes, nbytes: int) -> bool:
        """Whether the peer may hold so much more."""
        held = sum(size for holder, size in self._held.values() if holder == peer)
        return held + nbytes <= self._bytes_per_peer

    def pulled(self, lease: Lease, transfer: bytes, peer: bytes, nbytes: int) -> None:
        """A pull of it begins."""
        lease.pulls.add(transfer)
        self._held[transfer] = peer, nbytes

    def beat(self, name: str, now: float) -> None:
        """A puller is still there."""
        lease = self._leases.get(name)
        if lease is not None:
            lease.until = min(max(lease.until, now + EXTEND_S), lease.most)

    def over(self, name: str, transfer: bytes) -> None:
        """A pull has ended."""
        self._held.pop(transfer, None)
        lease = self._leases.get(name)
        if lease is not None:
            lease.pulls.discard(transfer)

    def deadline(self) -> float:
        """When the next one ends."""
        return min((lease.until for lease in self._leases.values()), default=float("inf"))

    def expired(self, now: float) -> list[Lease]:
        """All whose time is over; they are gone."""
        found = [lease for lease in self._leases.values() if now >= lease.until]
        for lease in found:
            self.remove(lease.name, "its lease is over")
        return found

    def remove(self, name: str, why: str) -> Lease | None:
        """It is gone, for that reason."""
        lease = self._leases.pop(name, None)
        if lease is not None:
            self._gone[name] = why
            if len(self._gone) > _GONE_MAX:
                self._gone.popitem(last=False)
        return lease

    def all(self) -> list[Lease]:
        """Those that are there."""
        return list(self._leases.values())
