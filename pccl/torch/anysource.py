"""anysource.py - receives whose sender is not named, made of receives from everybody.

An op of pccl names its sender. So a receive from any source posts one receive for every other rank, into memory of its
own, and takes what comes first (a *claim*). The others stay posted and are used by the next receives of that tag, those
from a named rank too; therefore all messages of a tag that was once received from any source have one dtype and size.
Posted receives have no deadline that matters: whoever waits for a claim has one.

`Anysource._order` is held while receives are submitted, so that they are posted in the order of the calls; `_lock`
guards the tables and is never held while anything is submitted or resolved, since the control thread takes it too.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pccl.errors import PcclError
from pccl.torch.owner import Described
from pccl.torch.rendezvous import Member
from pccl.work import Result, Work

__all__ = ["Anysource", "Claim"]

_FOR_EVER_S = 1e9


@dataclass(eq=False, slots=True)
class Posted:
    """A receive from one rank that nobody has taken yet."""

    rank: int
    view: torch.Tensor
    op: Work


@dataclass(eq=False, slots=True)
class Claim:
    """A receive from any source: `op` ends when `taken` is known, or has failed."""

    op: Work
    taken: list[Posted] = field(default_factory=list)


class Anysource:
    """The receives of one group that name no sender, and those that are posted for them."""

    def __init__(self, member: Member, recv: Callable[[torch.Tensor, int, str, float], Work]) -> None:
        self._member = member
        self._recv = recv
        self._order = threading.Lock()
        self._lock = threading.Lock()
        self._posted: defaultdict[tuple[str, int], deque[Posted]] = defaultdict(deque)
        self._claims: defaultdict[str, deque[Claim]] = defaultdict(deque)

    def claim(self, like: torch.Tensor, channel: str) -> Claim:
        """Whatever comes first on the channel. Raises what a receive does."""
        me = self._member.rank
        claim = Claim(Work(Described(self._member, f"recv of {channel} from any source"), 0))
        with self._order:
            with self._lock:
                self._claims[channel].append(claim)
                wanted = len(self._claims[channel])
                missing = {
                    rank: wanted - len(self._posted[channel, rank]) for rank in range(self._member.size) if rank != me
                }
            for rank, count in missing.items():
                for _ in range(count):
                    self._post(like, rank, channel)
        self._match(channel)
        return claim

    def _post(self, like: torch.Tensor, rank: int, channel: str) -> None:
        view = torch.empty_like(like)
        op = self._recv(view, rank, channel, _FOR_EVER_S)
        with self._lock:
            self._posted[channel, rank].append(Posted(rank, view, op))
        op._when_done(lambda: self._match(channel))

    def recv(self, view: torch.Tensor, rank: int, channel: str, timeout_s: float) -> Posted:
        """From one rank: what is posted already, else a receive into `view`. ValueError if what is posted is for
        messages of another size.
        """
        with self._order:
            with self._lock:
                waiting = self._posted.get((channel, rank))
                posted = waiting.popleft() if waiting else None
                if posted is not None and (posted.view.shape, posted.view.dtype) != (view.shape, view.dtype):
                    waiting.appendleft(posted)  # type: ignore[union-attr]
                    raise ValueError(
                        f"recv of {channel}: it was received from any source before, so its messages have "
                        f"{posted.view.numel()} elements of {posted.view.dtype}, not {view.numel()} of {view.dtype}"
                    )
            return posted or Posted(rank, view, self._recv(view, rank, channel, timeout_s))

    def _match(self, channel: str) -> None:
        """Gives claims what has arrived, oldest first; all of them the error if a receive has failed."""
        ended: list[tuple[Claim, Result | None, PcclError | None]] = []
        with self._lock:
            claims = self._claims[channel]
            for (of, _), waiting in self._posted.items():
                while of == channel and claims and waiting and waiting[0].op.done():
                    posted = waiting.popleft()
                    try:
                        got = posted.op.wait()
                    except PcclError as lost:
                        ended += [(claim, None, lost) for claim in claims]
                        claims.clear()
                    else:
                        claim = claims.popleft()
                        claim.taken.append(posted)
                        ended.append((claim, got, None))
        for claim, result, error in ended:
            claim.op._resolve(result, error)
