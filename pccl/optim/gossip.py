"""gossip.py - NoLoCo (arXiv 2506.10911): a round is an exchange with one other replica, and nobody waits for the rest.

In every round the replicas form pairs, as round and last boundary decide (gossip_math.py); the two swap Theta and
theta - Theta, and each moves along the mean of both and towards the other. Replicas stay near each other and are not
equal; `consensus` averages them in the end. Boundaries, where newcomers enter and take over somebody's Theta, are the
only points where all wait for all: one in `Use.boundary_every` rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccl.errors import Evicted, PcclError, PeerLost
from pccl.optim import gossip_math
from pccl.optim.flights import compare
from pccl.optim.line import Comm, Steps
from pccl.optim.master import Fragment
from pccl.optim.rounds import AGAIN, Key, fresh_delta
from pccl.optim.shards import Shards
from pccl.optim.stats import Round

__all__ = ["Mixing", "Pairs"]


@dataclass(frozen=True, slots=True)
class Mixing:
    """The constants of equation 2: momentum alpha, step beta along the mean change, pull gamma to the mean Theta.
    ArgumentError where the replicas would drift apart (the exact bound, see gossip_math.stability_bound)."""

    alpha: float = 0.5
    beta: float = 0.7
    gamma: float = 0.7

    def __post_init__(self) -> None:
        gossip_math.check_stable(self.alpha, self.gamma, 2)


@dataclass(slots=True)
class _Meeting:
    """Of one round: [2 n + 1] numbers, Theta, theta - Theta and 1.0 if the latter counts, of both; who they are."""

    own: Tensor
    other: Tensor | None = None
    partner: bytes = b""
    results: tuple[Any, ...] = ()


class Pairs:
    """See the header; a Rounds. Where a partner is lost, or does not come in time, this replica has the round to
    itself; with `alone_too` False it is an error if none came in time."""

    def __init__(
        self,
        comm: Comm,
        fragments: list[Fragment],
        mixing: Mixing,
        timeout_s: float | None,
        alone_too: bool,
        shards: Shards,
    ) -> None:
        self._comm, self._fragments, self._mixing = comm, fragments, mixing
        self._timeout_s, self._alone_too, self._shards = timeout_s, alone_too, shards
        self._momentum: dict[int, Tensor] = {}
        self._meetings: dict[Key, _Meeting] = {}
        self._epoch, self._peers = comm.epoch, comm.peers  # of the last boundary, whoever has died since

    def look_ahead(self, index: int) -> None:
        """A round lands in the step in which it is sent."""

    def send(self, key: Key, steps: int) -> Steps[None]:
        fragment = self._fragments[key[0]]
        delta, finite = fresh_delta(fragment)
        _, finite = yield from self._shards.weigh(1.0, finite)
        change = -delta if finite else torch.zeros_like(delta)
        fragment.give(delta)
        self._meetings[key] = _Meeting(torch.cat([fragment.theta, change, torch.tensor([float(finite)])]))

    def again(self, key: Key, attempt: int) -> None:
        raise AssertionError("a round of two is never begun again")

    def arrive(self, key: Key) -> Steps[int]:
        place = key[1] * len(self._fragments) + key[0]
        partner = gossip_math.partner(self._peers, self._epoch, place, self._comm.peer_id)
        if partner is not None and partner in self._comm.peers:
            yield from self._swap(key, self._meetings[key], partner)
        return 0

    def land(self, key: Key, step: int, attempt: int) -> Round:
        fragment, met = self._fragments[key[0]], self._meetings.pop(key)
        both = [met.own] if met.other is None else [met.own, met.other]
        thetas, changes = [one[: fragment.numel] for one in both], [one[fragment.numel : -1] for one in both]
        counted = [change for change, one in zip(changes, both, strict=True) if one[-1]]
        change = _mean(counted) if counted else torch.zeros(fragment.numel)
        momentum, mixing = self.shared(fragment)["momentum"], self._mixing
        gossip_math.update(fragment.theta, momentum, change, _mean(thetas), mixing.alpha, mixing.beta, mixing.gamma)
        fragment.write(fragment.theta)
        delta_norm, mean_norm, cosine = compare(changes[0], change)
        peers = [self._comm.peer_id] if met.other is None else [self._comm.peer_id, met.partner]
        return Round(
            fragment=key[0],
            number=key[1],
            step=step,
            epoch=self._comm.epoch,
            peers=tuple(sorted(peers)),
            excluded=tuple(peer for peer, one in zip(peers, both, strict=True) if not one[-1]),
            retries=0,
            bytes_sent=sum(result.bytes_sent for result in met.results),
            bytes_received=sum(result.bytes_received for result in met.results),
            delta_norm=delta_norm,
            mean_norm=mean_norm,
            cosine=cosine,
        )

    def drop(self, key: Key) -> None:
        self._meetings.pop(key)

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        return {"momentum": self._momentum.setdefault(id(fragment), torch.zeros(fragment.numel))}

    def passed(self) -> Steps[None]:
        """Who forms pairs: those who take part in one more op, which is the same for all of them."""
        here = torch.zeros(1, dtype=torch.uint8)
        met = yield self._comm.all_gather(here, tag="pccl.optim.pairs", async_op=True, timeout=self._timeout_s)
        self._epoch, self._peers = met.epoch, met.peers

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        return {}

    def _swap(self, key: Key, met: _Meeting, partner: bytes) -> Steps[None]:
        """Both send and both receive; what has not come from a partner is not there."""
        other = torch.empty_like(met.own)
        options = {"tag": f"pccl.optim.{key[0]}.{key[1]}", "async_op": True, "timeout": self._timeout_s}
        results, failed, pending = [], list[PcclError](), []
        try:
            pending.append(self._comm.send(met.own, partner, **options))
            pending.append(self._comm.recv(other, partner, **options))
        except AGAIN as error:
            failed.append(error)
        for work in pending:
            try:
                results.append((yield work))
            except AGAIN as error:
                failed.append(error)
        for reason in failed:
            if isinstance(reason, Evicted) or not (self._alone_too or isinstance(reason, PeerLost)):
                raise reason
        met.results = tuple(results)
        if not failed:
            met.other, met.partner = other, partner


def _mean(parts: list[Tensor]) -> Tensor:
    return parts[0].clone() if len(parts) == 1 else (parts[0] + parts[1]) / 2
