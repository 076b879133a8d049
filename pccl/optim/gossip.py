"""gossip.py - NoLoCo (arXiv 2506.10911): a round is an exchange with one other replica, and nobody waits for the rest.

In every round the replicas form pairs, as epoch and round decide (gossip_math.py); the two swap Theta and theta -
Theta, and each moves along the mean of both and towards the other. Replicas stay near each other and are not equal;
`consensus` averages them in the end. Boundaries, where newcomers enter and take over somebody's Theta, are the only
points where all wait for all: one in `Use.boundary_every` rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pccl.errors import Evicted, PeerLost
from pccl.optim import gossip_math
from pccl.optim.engine import Key, OuterSync, Use
from pccl.optim.exchange import Dense, Lot
from pccl.optim.fragments import Schedule
from pccl.optim.line import Comm, Steps
from pccl.optim.master import Fragment
from pccl.optim.stats import Round

__all__ = ["GossipSync", "Mixing"]


@dataclass(frozen=True, slots=True)
class Mixing:
    """The constants of equation 2: momentum alpha, step beta along the mean change, pull gamma to the mean Theta.
    ArgumentError where the replicas would drift apart (the exact bound, see gossip_math.stability_bound)."""

    alpha: float = 0.5
    beta: float = 0.7
    gamma: float = 0.7

    def __post_init__(self) -> None:
        gossip_math.check_stable(self.alpha, self.gamma, 2)


class _Momentum:
    """The Mode of gossip: keeps a momentum for every fragment."""

    def __init__(self) -> None:
        self._of: dict[int, Tensor] = {}

    def sent(self, fragment: Fragment, lot: Lot, is_first: bool, world: int) -> None:
        raise AssertionError("gossip sends nothing to all")

    landed = sent

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        return {"momentum": self._of.setdefault(id(fragment), torch.zeros(fragment.numel))}


class GossipSync(OuterSync):
    """See the header. A partner that is lost in the exchange leaves this replica to itself for the round."""

    def __init__(self, comm: Comm, fragments: list[Fragment], schedule: Schedule, mixing: Mixing, use: Use) -> None:
        super().__init__(comm, fragments, schedule, Dense(None), _Momentum(), use)  # type: ignore[arg-type]
        self._mixing = mixing

    def _send(self, key: Key) -> None:
        """Nothing is sent ahead: Theta and the change travel together."""

    def _land(self, key: Key, with_tensors: bool) -> Steps[bool]:
        index, number = key
        fragment = self.fragments[index]
        delta = fragment.delta()
        own = torch.stack([fragment.theta, -delta])
        fragment.give(delta)
        place = number * len(self.fragments) + index
        partner = gossip_math.partner(self.comm.peers, self.comm.epoch, place, self.comm.peer_id)
        other, results = (yield from self._swap(key, own, partner)) if partner is not None else (None, [])
        mean = own if other is None else (own + other) / 2
        momentum = self.mode.shared(fragment)["momentum"]
        alpha, beta, gamma = self._mixing.alpha, self._mixing.beta, self._mixing.gamma
        gossip_math.update(fragment.theta, momentum, mean[1], mean[0], alpha, beta, gamma)
        fragment.write(fragment.theta)
        self._tell(key, own[1], mean[1], () if other is None or partner is None else (partner,), results)
        self._pass(key)
        return False

    def _swap(self, key: Key, own: Tensor, partner: bytes) -> Steps[tuple[Tensor | None, list[Any]]]:
        """The partner's Theta and change; None if it is gone."""
        other = torch.empty_like(own)
        options = {"tag": f"pccl.optim.{key[0]}.{key[1]}", "async_op": True, "timeout": self.use.timeout_s}
        results, lost = [], False
        try:
            pending = [self.comm.send(own, partner, **options), self.comm.recv(other, partner, **options)]
        except PeerLost as error:
            if isinstance(error, Evicted):
                raise
            return None, []
        for work in pending:
            try:
                results.append((yield work))
            except PeerLost as error:
                if isinstance(error, Evicted):
                    raise
                lost = True
        return None if lost else other, results

    def _tell(self, key: Key, delta: Tensor, mean: Tensor, others: tuple[bytes, ...], results: list[Any]) -> None:
        size, mean_size = float(delta.norm()), float(mean.norm())
        self._count(
            Round(
                fragment=key[0],
                number=key[1],
                step=self.step,
                epoch=self.comm.epoch,
                peers=tuple(sorted((self.comm.peer_id, *others))),
                excluded=(),
                retries=0,
                bytes_sent=sum(result.bytes_sent for result in results),
                bytes_received=sum(result.bytes_received for result in results),
                delta_norm=size,
                mean_norm=mean_size,
                cosine=float(torch.dot(delta, mean)) / (size * mean_size) if size and mean_size else 0.0,
            )
        )
