"""sglang_rooms.py - one request of SGLang's ("room") at each side: its transfers, how far, and how it ended.

D pulls a room in parts: so many pages each, and with the last of them states and what goes with the first token. P
answers by hand: it opens a part when it has computed all pages of it, so that what is computed flows while the rest is.
The names of the pulls, ROOM/PART/PARTS/PREFIX, say all that P must know. Either all parts commit, or all end.

Nothing here raises while the engine steps: what cannot begin has failed. A room has ended only when nothing touches the
engine's memory any more. Needs no sglang.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

import pccl.kv as kv
from pccl.errors import PcclError, ProtocolError
from pccl.kv.adapters.sglang_layout import Caches
from pccl.kv.adapters.sglang_settings import Settings
from pccl.kv.ends import error_of
from pccl.kv.ticket import Ticket
from pccl.transfer.offers import FENCE_S

__all__ = ["Receiving", "Sending", "Stage"]

Stage = Literal["failed", "bootstrapping", "waiting", "transferring", "success"]
PARTS_MAX = 64
_NAME = re.compile(r"[^/]*/([0-9]{1,4})/([0-9]{1,4})/([0-9]{1,9})\Z")
log = logging.getLogger("pccl.kv.sglang")


class _Room(ABC):
    """What both sides have. `error`: why it failed, first of all reasons."""

    def __init__(self, pool: kv.Pool, caches: Caches, settings: Settings, room: int) -> None:
        self._pool, self._caches, self._settings = pool, caches, settings
        self.room = room
        self.error: PcclError | None = None
        self._handles: list[kv.Send | kv.Receive] = []

    def _look(self) -> bool:
        """Whether all parts have ended. One that has ended otherwise than by commit ends all."""
        over = self._over()  # before they are looked at: what ends meanwhile is looked at next time
        for handle in self._handles:
            end = handle.end
            if end is not None and end.state is not kv.State.COMMITTED and self.error is None:
                self.fail(error_of(end, None, f"room {self.room}"))
        return over

    def fail(self, error: PcclError) -> None:
        """Ends it, on both sides, if it has not failed. Does not block."""
        if self.error is not None:
            return
        self.error = error
        log.warning("room %s: %s", self.room, error.message)
        for handle in self._handles:
            if handle.end is None:
                self._pool.stop(handle.transfer_id, kv.State.ABORTED, error.message[:255] or "it failed")

    def _over(self) -> bool:
        return all(handle.end is not None for handle in self._handles)

    def abort(self, why: str) -> None:
        """Of the engine. Without effect when it has ended."""
        if self.stage() not in ("success", "failed"):
            self.fail(kv.TransferAborted(why, op=f"room {self.room}", cause="aborted"))

    @abstractmethod
    def stage(self) -> Stage:
        """See KVPoll."""

    def raise_error(self) -> None:
        """Raises why it failed; one that has not is aborted: another worker of the engine failed. When it raises,
        nothing touches the engine's memory any more: blocks for milliseconds. Timeout: the engine does not answer.
        """
        self._look()
        self.fail(kv.TransferAborted("another worker failed", op=f"room {self.room}", cause="aborted"))
        for handle in self._handles:
            with contextlib.suppress(kv.EndError):  # one of them is `error`, or its consequence
                handle.wait(FENCE_S)
        assert self.error is not None
        raise self.error


class Receiving(_Room):
    """D's. `peer`: the worker of P."""

    def __init__(self, pool: kv.Pool, caches: Caches, settings: Settings, room: int) -> None:
        super().__init__(pool, caches, settings, room)
        self._begun = False

    def begin(
        self, peer: bytes, pages: Sequence[int], aux: int | None, states: Sequence[Any] | None, prefix: int
    ) -> None:
        """Pulls into these pages, which are all but the first `prefix` tokens of a prompt."""
        self._begun = True
        if self.error is not None:
            return
        ids = np.asarray(pages).ravel()
        step = max(1, self._settings.part_tokens // self._caches.page_tokens, -(-ids.size // PARTS_MAX))
        begins = range(0, max(1, ids.size), step)
        try:
            for number, begin in enumerate(begins):
                into = self._caches.page_blocks(ids[begin : begin + step])
                if begin == begins[-1]:
                    into |= self._caches.other_blocks(aux, states)
                name = f"{self.room}/{number}/{len(begins)}/{prefix}"
                self._handles.append(self._pool.pull(peer, name, into, deadline=self._settings.deadline_s))
        except PcclError as error:
            self.fail(error)

    def stage(self) -> Stage:
        """See KVPoll."""
        over = self._look()
        if self.error is not None:
            return "failed" if over else "transferring"
        if not self._begun:
            return "waiting"
        return "success" if over else "transferring"


class _Part:
    """One pull of D's: `first` and `end`: of the room's pages."""

    def __init__(self, name: str, ticket: bytes, first: int, pages: int) -> None:
        self.name, self.ticket = name, ticket
        self.first, self.end = first, first + pages


class Sending(_Room):
    """P's."""

    def __init__(self, pool: kv.Pool, caches: Caches, settings: Settings, room: int) -> None:
        super().__init__(pool, caches, settings, room)
        pool.expect(str(room))
        self._since = time.monotonic()
        self._parts: list[_Part] | None = None
        self._opened = 0
        self._opened_at = self._ended_at = 0.0
        self._pages: list[int] = []
        self._count = -1
        self._aux: int | None = None
        #: Tokens of the prompt that D has already.
        self.prefix = 0

    def init(self, count: int, aux: int | None) -> None:
        """So many pages will be sent."""
        self._count, self._aux = count, aux
        wanted = self._parts[-1].end if self._parts else 0
        if self.error is None and count != wanted:
            self.fail(ProtocolError(f"{count} pages are to be sent, the decoder wants {wanted}"))

    def send(self, pages: Sequence[int], states: Sequence[Any] | None) -> None:
        """The next pages hold what they are to hold; with the last of them so do the states and the first token."""
        self._pages += np.asarray(pages).ravel().tolist()
        last = len(self._pages) >= self._count
        if self.error is not None or self._parts is None:
            return
        try:
            while self._opened < len(self._parts):
                part, is_last = self._parts[self._opened], self._opened + 1 == len(self._parts)
                if len(self._pages) < part.end or (is_last and not last):
                    break
                self._open(part, states if is_last else None, is_last)
        except PcclError as error:
            self.fail(error)

    def _open(self, part: _Part, states: Sequence[Any] | None, is_last: bool) -> None:
        blocks = self._caches.page_blocks(self._pages[part.first : part.end])
        if is_last:
            blocks |= self._caches.other_blocks(self._aux, states)
        send = self._pool.open_send(part.ticket, blocks)
        self._opened_at = self._opened_at or time.monotonic()
        self._handles.append(send)
        self._opened += 1
        for group in self._pool.layout.groups:
            if len(blocks.get(group.name, ())):
                for layer in group.layers:
                    send.layer_ready(layer)
        send.finish()

    def fail(self, error: PcclError) -> None:
        """See _Room; also what D has asked for, or will, ends."""
        if self.error is None:
            self._pool.decline(str(self.room), error.message[:255] or "it failed")
        super().fail(error)

    def stage(self) -> Stage:
        """See KVPoll."""
        over = self._look()
        if self.error is None:
            self._listen()
        if self.error is not None:
            return "failed" if over else "transferring"
        if self._parts is None:
            return "bootstrapping"
        if not self._pages and not self._opened:
            return "waiting"
        if self._opened < len(self._parts) or not over:
            return "transferring"
        self._ended_at = self._ended_at or time.monotonic()
        return "success"

    def _listen(self) -> None:
        """Whether D has asked, and still wants what has not begun."""
        asked = self._pool.asked(str(self.room))
        if self._parts is None:
            try:
                self._parts = self._parts_of(asked)
            except PcclError as error:
                self.fail(error)
                return
            if self._parts is None and (why := self._pool.left(str(self.room))):
                self.fail(
                    kv.TransferAborted(f"the decoder does not want room {self.room} any more: {why}", cause="gone")
                )
            elif self._parts is None and time.monotonic() > self._since + self._settings.bootstrap_s:
                text = f"no decoder has asked for room {self.room} within {self._settings.bootstrap_s:g} s"
                self.fail(kv.TransferExpired(text, cause="deadline"))
        elif gone := [part.name for part in self._parts[self._opened :] if part.name not in asked]:
            self.fail(kv.TransferAborted(f"the decoder does not want {gone[0]} any more", cause="gone"))

    def _parts_of(self, asked: dict[str, bytes]) -> list[_Part] | None:
        """None: not all pulls have come. Raises ProtocolError."""
        found: dict[int, tuple[str, bytes]] = {}
        said = set()
        for name, ticket in asked.items():
            match = _NAME.fullmatch(name)
            if match is None:
                raise ProtocolError(f"a pull of {name!r}, which is no part of a room")
            number, count, prefix = map(int, match.groups())
            found[number] = name, ticket
            said.add((count, prefix))
        if not said:
            return None
        if len(said) != 1 or max(found) >= min(said)[0]:
            raise ProtocolError(f"pulls of room {self.room} that do not belong together: {sorted(asked)}")
        ((count, self.prefix),) = said
        if len(found) < count:
            return None
        parts: list[_Part] = []
        for number in range(count):
            name, ticket = found[number]
            parts.append(_Part(name, ticket, parts[-1].end if parts else 0, self._wanted(ticket)))
        return parts

    def _wanted(self, ticket: bytes) -> int:
        """Pages of a part."""
        decoded = Ticket.decode(ticket)
        counts = {
            wanted.blocks
            for group, wanted in zip(decoded.layout.groups, decoded.wanted, strict=True)
            if group.name in self._caches.pages
        }
        if len(counts) != 1:
            raise ProtocolError(f"a decoder that wants {sorted(counts)} pages of different groups")
        return counts.pop()

    @property
    def nbytes(self) -> int:
        """That were sent, once it has succeeded."""
        return sum(handle.wait(FENCE_S).nbytes for handle in self._handles)

    @property
    def duration_s(self) -> float | None:
        """From the first part's opening to the last one's commit; None: not yet."""
        return self._ended_at - self._opened_at if self._ended_at else None
