"""modes.py - what a replica does when a fragment is sent and when its mean has landed: one class per algorithm.

`Blend` is DiLoCo (arXiv 2311.08105), local SGD and, with fragments, overlap and merge, Streaming DiLoCo (arXiv
2501.18512); SparseLoCo is Blend with another exchange. `Delayed` takes the mean one period late. `Eager` (arXiv
2502.12996) mixes its own fresh delta with the others' late ones. Gossip has rounds of its own (gossip.py).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pccl.optim.exchange import Lot
from pccl.optim.master import Fragment

__all__ = ["Blend", "Delayed", "Eager", "Mode"]


class Mode(Protocol):
    """`sent`: a fragment's delta was taken; `world`: how many peers there are. `landed`: its mean has come; `fresh`:
    the delta that is sent next, where that was taken already. `shared`: tensors of its own that must be equal on all
    peers."""

    def sent(self, fragment: Fragment, lot: Lot, is_first: bool, world: int) -> None: ...
    def landed(self, fragment: Fragment, lot: Lot, fresh: Tensor | None, world: int) -> None: ...
    def shared(self, fragment: Fragment) -> dict[str, Tensor]: ...


class Blend:
    """Theta takes the outer step along the mean; theta becomes a mixture, `merge` of itself, the rest Theta."""

    def __init__(self, merge: float) -> None:
        self._merge = merge

    def sent(self, fragment: Fragment, lot: Lot, is_first: bool, world: int) -> None:
        pass

    def landed(self, fragment: Fragment, lot: Lot, fresh: Tensor | None, world: int) -> None:
        fragment.step(lot.mean)
        fragment.merge(self._merge)

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        return {}


class Delayed:
    """One period late: what a replica did in a period is only in its delta, and it begins the next one from Theta.

    `penalty` weakens stale means after the idea of CO2 (arXiv 2401.16265): there the mean is divided by a number that
    grows with the gap between a stale and a fresh estimate. Which number is taken here is our own choice, not the
    paper's: 1 + penalty * |mean - last| / |last|, lengths over a whole fragment, `last` the mean of the round before,
    1 in the first round. It needs nothing but means, so it is the same on every peer and costs no byte; penalty 0 is
    the plain mode.
    """

    def __init__(self, penalty: float = 0.0) -> None:
        self._penalty = penalty
        self._last: dict[int, Tensor] = {}

    def sent(self, fragment: Fragment, lot: Lot, is_first: bool, world: int) -> None:
        fragment.write(fragment.theta)

    def landed(self, fragment: Fragment, lot: Lot, fresh: Tensor | None, world: int) -> None:
        if self._penalty:
            last = self.shared(fragment)["last"]
            size = float(last.norm())
            gap = float((lot.mean - last).norm()) / size if size else 0.0
            last.copy_(lot.mean)
            lot.mean.div_(1.0 + self._penalty * gap)
        fragment.step(lot.mean)
        fragment.write(fragment.theta)

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        if not self._penalty:
            return {}
        if id(fragment) not in self._last:
            self._last[id(fragment)] = fragment.empty().zero_()
        return {"last": self._last[id(fragment)]}


class Eager:
    """g = mean of the round before + (own fresh delta - own delta of the round before) / peers (equation 3 there). In
    the first round, before any mean has landed: own delta / peers."""

    def sent(self, fragment: Fragment, lot: Lot, is_first: bool, world: int) -> None:
        if is_first:
            fragment.step(lot.delta / world)
            fragment.write(fragment.theta)

    def landed(self, fragment: Fragment, lot: Lot, fresh: Tensor | None, world: int) -> None:
        own = -lot.delta if fresh is None else fresh - lot.delta  # flushed: nothing newer of its own
        fragment.step(lot.mean + own / world)
        fragment.write(fragment.theta)

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        return {}
