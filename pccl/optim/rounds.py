"""rounds.py - what the engine asks of a way to do rounds: flights.py with all replicas, gossip.py with one other.

The engine (engine.py) says when a fragment is sent and lands, and how often it is tried; a Rounds does it.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pccl.errors import Cancelled, PeerLost, Timeout, TooFewPeers
from pccl.optim.line import Steps
from pccl.optim.master import Fragment
from pccl.optim.stats import Round

__all__ = ["AGAIN", "Key", "Rounds", "fresh_delta"]

Key = tuple[int, int]  # a fragment and its round

#: Errors after which something is tried again: they are the same for all who took part.
AGAIN = (TooFewPeers, Timeout, PeerLost, Cancelled)


class Rounds(Protocol):
    """The rounds of one replica. Not thread-safe."""

    def look_ahead(self, index: int) -> None:
        """Takes the delta of a fragment that lands now and is sent again in this step, before its landing changes
        theta."""

    def send(self, key: Key, steps: int) -> Steps[None]:
        """A fragment's delta, of so many inner steps, starts on its way."""

    def again(self, key: Key, attempt: int) -> None:
        """The same with the same delta; who had no part in it, because it came later, adds nothing."""

    def arrive(self, key: Key) -> Steps[int]:
        """Waits until all is here that its landing takes, and changes nothing yet. Gives a digest of who counts in it.
        Raises what the collective does."""

    def land(self, key: Key, step: int, attempt: int) -> Round:
        """Theta and theta become what they are after the round."""

    def drop(self, key: Key) -> None:
        """The round will never land."""

    def shared(self, fragment: Fragment) -> dict[str, Tensor]:
        """Tensors beside Theta and the outer state that newcomers need, shared."""

    def passed(self) -> Steps[None]:
        """All have become equal at a boundary: agrees on what the rounds until the next one rest on."""

    def own(self, fragment: Fragment) -> dict[str, Tensor]:
        """What this replica keeps from round to round, for its checkpoint; shared."""


def fresh_delta(fragment: Fragment) -> tuple[Tensor, bool]:
    """Theta - theta, in a buffer that was taken, and whether all of it is finite; zeros if not."""
    delta = fragment.delta()
    finite = bool(torch.isfinite(delta).all())
    return (delta if finite else delta.zero_()), finite
