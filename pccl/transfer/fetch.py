"""fetch.py - what a user holds of a fetch: a Work-like object, its result, and what there is to see meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pccl.transfer.fenced import Fenced
from pccl.transfer.job import Job, TransferReport
from pccl.transfer.offers import FENCE_S, Offer
from pccl.transfer.task import Task
from pccl.work import Owner

__all__ = ["Fetch", "FetchResult", "Progress"]


@dataclass(slots=True, frozen=True)
class FetchResult:
    """What a fetch gave. `tensor`: the target, or the flat uint8 numpy array that was made. `digest`: of the whole, as
    `Offer.digest`. `offer`: with `relay=True`, the offer of it here; it stays until it is withdrawn.
    """

    tensor: Any
    name: str
    generation: int
    nbytes: int
    digest: bytes
    report: TransferReport
    offer: Offer | None = None


@dataclass(slots=True, frozen=True)
class Progress:
    """How far a fetch is. `total_bytes` is None until the manifest is known."""

    done_bytes: int
    total_bytes: int | None


class Fetch(Fenced[FetchResult]):
    """A fetch under way. The target belongs to it until it is done; after that, well or not, nothing is written to it.

    `wait(timeout)` and `await` give the FetchResult, or raise: Timeout (the fetch's own deadline, or that of this
    wait), PeerLost (every source is gone), TransferError (see there), Cancelled, Closed, ForkError.
    """

    __slots__ = ("_job", "_tell")

    def __init__(self, owner: Owner, token: int, job: Job, tell: Callable[[Callable[[], Task]], None]) -> None:
        super().__init__(owner, token)
        self._job = job
        self._tell = tell

    @property
    def report(self) -> TransferReport:
        """What has happened so far; complete once the fetch is done."""
        return self._job.report

    def progress(self) -> Progress:
        """Bytes in their places, verified. Never blocks."""
        job = self._job
        schedule = job.schedule
        total = None if job.manifest is None else job.manifest.nbytes
        return Progress(0 if schedule is None else schedule.done_bytes, total)

    def have(self) -> bytes:
        """Bitmap of the chunks that are in their places, verified: one bit for each, the first in the lowest bit of the
        first byte; b"" while the manifest is not known. After an error, give it to the next `fetch` of the same
        generation into the same target, to fetch only the rest.
        """
        return self._job.have()

    def add_source(self, peer: bytes) -> None:
        """One more peer to fetch from, by its id. Does not block; without effect once the fetch has ended."""
        self._owner.check_pid()

        def step() -> Job:
            self._job.add_source(peer)
            return self._job

        self._tell(step)

    def go_on(self) -> None:
        """The target says what is wanted, which it did not when it was asked first (`Target.begin`). Does not block."""
        self._tell(lambda: self._job)

    def cancel(self, timeout: float = FENCE_S) -> bool:
        """Ends the fetch, and returns when nothing is written to its target any more: within milliseconds, whatever the
        sources do. Blocks.

        False if it had ended already, or ended well meanwhile; else wait() raises Cancelled. HungError if the engine
        does not answer within `timeout` seconds: then the target stays borrowed.
        """
        return self._cancel("fetch", timeout)
