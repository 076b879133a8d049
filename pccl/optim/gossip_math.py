"""gossip_math.py - who meets whom in a NoLoCo round (arXiv 2506.10911), what they make of it, and when that is stable.

Pure. A peer's outer parameters φ and momentum m are its own; a round needs only the means over a small group:

    m ← α m + β · mean(θ - φ) + γ · (mean(φ) - φ);   φ ← φ + m

θ - φ is new minus old, the opposite of the outer gradient Θ - θ of the other modes. (The paper prints a minus before
β, which goes uphill.) The groups follow from epoch, step and the peers of the epoch, so that nobody has to agree on
them. The spread of φ over many replicas in random groups of n shrinks if and only if
0 < γ < 2 (1 - α²) / (1 + α - 2 α κ) with κ = (n - 1) / n; the paper's own bound lets divergent settings through where
α > 0.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pccl.errors import ArgumentError

__all__ = ["check_stable", "groups", "partner", "stability_bound", "update"]

_PERSON = b"pccl gossip"


def stability_bound(alpha: float, n: int) -> float:
    """What γ must be below for the replicas to stay together; for pairs 2 (1 - α²). Raises ArgumentError."""
    if not 0 <= alpha < 1:
        raise ArgumentError(f"alpha must be from 0 to below 1, not {alpha}")
    if n < 1:
        raise ArgumentError(f"a group has 1 peer at least, not {n}")
    return 2 * (1 - alpha * alpha) / (1 + alpha - 2 * alpha * (n - 1) / n)


def check_stable(alpha: float, gamma: float, n: int = 2) -> None:
    """Raises ArgumentError, which tells the bound, unless replicas in groups of `n` stay together."""
    bound = stability_bound(alpha, n)
    if not 0 < gamma < bound:
        raise ArgumentError(
            f"gamma={gamma} with alpha={alpha} lets the replicas drift apart: in groups of {n} it must be above 0 and "
            f"below {bound:.4g}, that is 2(1-alpha^2)/(1+alpha-2*alpha*k) with k=(n-1)/n"
        )


def groups(peers: Sequence[bytes], epoch: int, step: int, n: int = 2) -> list[tuple[bytes, ...]]:
    """Groups of `n` drawn by chance, the same on every peer whatever the order of `peers`; the members sorted.

    Peers that are left over form a smaller group: in pairs, an odd one is alone. `peers`: the ids of the epoch's
    members, `step`: the number of the outer round; both numbers below 2^64. Raises ArgumentError for a peer that is
    named twice, a group of less than 1 and a number out of range.
    """
    if n < 1:
        raise ArgumentError(f"a group has 1 peer at least, not {n}")
    order = sorted(peers)
    for one, other in pairwise(order):
        if one == other:
            raise ArgumentError(f"peer {one.hex()} is named twice")
    draws = _draws(epoch, step)
    for last in range(len(order) - 1, 0, -1):
        place = _below(last + 1, draws)
        order[last], order[place] = order[place], order[last]
    return [tuple(sorted(order[first : first + n])) for first in range(0, len(order), n)]


def partner(peers: Sequence[bytes], epoch: int, step: int, me: bytes) -> bytes | None:
    """The other one of this peer's pair; None if it is alone. Raises ArgumentError if `me` is not among the peers."""
    for pair in groups(peers, epoch, step):
        if me in pair:
            return next((other for other in pair if other != me), None)
    raise ArgumentError(f"peer {me.hex()} is not among the {len(peers)} peers of epoch {epoch}")


def update(
    phi: Tensor, momentum: Tensor, mean_delta: Tensor, mean_phi: Tensor, alpha: float, beta: float, gamma: float
) -> None:
    """m ← α m + β · mean_delta + γ · (mean_phi - φ); φ ← φ + m: `phi` and `momentum` in place.

    All fp32 of one shape; `mean_delta`: the group's mean of θ - φ, `mean_phi`: of φ, of which neither may be the memory
    of `phi` or `momentum`. Raises ArgumentError for another dtype or shape; nothing is changed then.
    """
    named = {"phi": phi, "momentum": momentum, "mean_delta": mean_delta, "mean_phi": mean_phi}
    for what, tensor in named.items():
        if tensor.dtype != torch.float32 or tensor.shape != phi.shape:
            raise ArgumentError(
                f"{what} must be float32 of shape {tuple(phi.shape)}, not {tensor.dtype} of {tuple(tensor.shape)}"
            )
    gap = mean_phi - phi
    momentum.mul_(alpha).add_(mean_delta, alpha=beta).add_(gap, alpha=gamma)
    phi.add_(momentum)


# -- numbers that are the same everywhere, in every version of everything ----------------------------------------------


def _draws(epoch: int, step: int) -> Iterator[int]:
    """Endless 64-bit numbers: BLAKE2b over the seed and a counter."""
    for what, number in (("epoch", epoch), ("step", step)):
        if not 0 <= number < 1 << 64:
            raise ArgumentError(f"{what} must be from 0 to below 2^64, not {number}")
    seed = epoch.to_bytes(8, "little") + step.to_bytes(8, "little")
    block = 0
    while True:
        digest = hashlib.blake2b(seed + block.to_bytes(8, "little"), person=_PERSON).digest()
        for first in range(0, len(digest), 8):
            yield int.from_bytes(digest[first : first + 8], "little")
        block += 1


def _below(limit: int, draws: Iterator[int]) -> int:
    """A number below `limit`, each as likely: what lies beyond the last whole multiple of it is drawn again."""
    whole = (1 << 64) // limit * limit
    return next(draw for draw in draws if draw < whole) % limit
