"""joint.py - the lead of several publishers: it collects their parts of a version and puts each block together.

It says which round it is by a line; each of the others shows by a line of its own that its part of that round is
there. Only with the parts of all, which must hold every element, there is something to publish. A block that one of
them has whole is passed on as it came; of others the pieces are laid onto the baseline and coded anew. All is decoded
here first: what the lead signs it has seen to be right.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any

import numpy as np

from pccl.errors import Closed, PcclError, PeerLost, Timeout
from pccl.transfer.transfers import Transfers
from pccl.weights import codec
from pccl.weights.certificate import Version
from pccl.weights.codec import Codec, DeltaError, WrongBaseError
from pccl.weights.errors import DamageError, SchemaError
from pccl.weights.gather import Parts, Ready
from pccl.weights.layout import slots_for
from pccl.weights.line import Inbox, Outbox
from pccl.weights.pieces import Piece, pieces_in
from pccl.weights.records import Part, Round, decode, part_line, part_stream, round_line
from pccl.weights.schema import Schema
from pccl.weights.shadow import Shadow
from pccl.weights.stream import StreamIn
from pccl.weights.write import write

__all__ = ["Joint", "Together", "part_slots"]

#: Lines that are not there yet are looked for so often at least.
IDLE_S = 0.1

Array = np.ndarray[Any, Any]
Step = Callable[[], None]


def part_slots(schema: Schema) -> int:
    """What a part needs at most: all of it raw, in pieces of one row each."""
    return slots_for(2 * schema.nbytes + 1024 * len(schema.blocks) + 65536)


class Joint:
    """Of one Publisher; its thread, but for `close`. `ranks`: gives the ids of the others."""

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        schema: Schema,
        ranks: Callable[[], Sequence[bytes]],
        baseline: Shadow,
        tip: Version,
        timeout_s: float,
    ) -> None:
        self._transfers, self._name, self._schema = transfers, name, schema
        self._ranks, self._baseline, self._timeout_s = ranks, baseline, timeout_s
        self._steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self._round = Round(tip.version, tip.lineage, 0, False, "", b"")
        self._line = Outbox(transfers, round_line(name), self._round.encode())

    def open(self, tip: Version, joint: bool) -> None:
        """There is a new version, durable; `joint`: of the parts of all."""
        self._say(Round(tip.version, tip.lineage, 0, joint, "", b""))

    def abort(self, error: PcclError) -> None:
        """The version did not come to be: the parts of this round are void."""
        last = self._round
        self._say(Round(last.version, last.lineage, last.attempt + 1, False, str(error)[:500], error.peer or b""))

    def close(self) -> None:
        """Whoever waits for parts gets Closed."""

        def stop() -> None:
            raise Closed("the publisher is closed")

        self._steps.put(stop)
        self._line.close()

    def collect(self, own: Parts, pool: Executor, codecs: str) -> Together:
        """All that the next version is made of. Raises PeerLost, Timeout, DamageError, SchemaError: there is none."""
        made = Together(self._schema, self._baseline, codecs, own, pool)
        waiting = {peer: _Wait(self, peer) for peer in self._ranks()}
        until = time.monotonic() + self._timeout_s
        try:
            while missing := [wait for wait in waiting.values() if wait.data is None]:
                now = time.monotonic()
                if now >= until:
                    names = ", ".join(wait.peer.hex()[:8] for wait in missing)
                    raise Timeout(f"no part of version {self._round.version + 1} came from {names}")
                due = min(until, now + IDLE_S, *(wait.tend(now) for wait in missing))
                with suppress(queue.Empty):
                    self._steps.get(timeout=max(0.001, due - now))()
            for wait in waiting.values():
                made.add(wait.peer, wait.pieces())
        finally:
            for wait in waiting.values():
                wait.close()
        made.check_whole()
        return made

    def _say(self, word: Round) -> None:
        self._round = word
        self._line.post(word.encode())


class _Wait:
    """For the part of one peer. `data`: when all of it is here."""

    def __init__(self, joint: Joint, peer: bytes) -> None:
        self._joint, self.peer = joint, peer
        self.data: memoryview | None = None
        self._stream: StreamIn | None = None
        self._closed = False

        def told(data: bytes) -> None:
            joint._steps.put(lambda: self._on_part(decode(Part, data)))

        def lost() -> None:
            joint._steps.put(lambda: self._lose("is gone"))

        name = part_line(joint._name)
        self._inbox = Inbox(joint._transfers, peer, name, told, lambda: None, lost)

    def tend(self, now: float) -> float:
        """See Inbox."""
        return self._inbox.tend(now)

    def pieces(self) -> list[Piece]:
        """What came."""
        assert self.data is not None
        try:
            return pieces_in(self.data, self._joint._schema)
        except DamageError as error:
            raise DamageError(error.message, peer=self.peer) from error

    def close(self) -> None:
        """Nothing is read any more."""
        self._closed = True
        self._inbox.close()
        if self._stream is not None:
            self._stream.cancel()

    def _on_part(self, part: Part) -> None:
        joint = self._joint
        if self._closed or part.key != joint._round.key or self._stream is not None:
            return
        if not 0 < part.slots <= part_slots(joint._schema):
            raise DamageError(f"a part cannot have {part.slots} slots", peer=self.peer)
        self._stream = StreamIn(
            joint._transfers, part_stream(joint._name, part.key), joint._round.version + 1, part.slots, [self.peer],
            on_grown=self._on_grown, on_slot=lambda stream, index, slot: None,
            on_failed=lambda stream, why: joint._steps.put(lambda: self._lose(why)),
        )  # fmt: skip

    def _on_grown(self, stream: StreamIn) -> None:
        if stream.complete:
            self._joint._steps.put(lambda: self._take(stream))

    def _take(self, stream: StreamIn) -> None:
        self.data = stream.memory.data[: stream.total]

    def _lose(self, why: str) -> None:
        if self.data is None and not self._closed:
            raise PeerLost(
                f"its part of version {self._joint._round.version + 1} is not to be had: {why}", peer=self.peer
            )


class Together:
    """What is to be published, of all: as gather.Parts is of one. Where several give an element, the lead's own value
    counts, then that of the first in the list.
    """

    def __init__(self, schema: Schema, baseline: Shadow, codecs: str, own: Parts, pool: Executor) -> None:
        self._schema, self._baseline, self._codecs = schema, baseline, codecs
        self._own = {number: own.pieces(number) for number in own.touched()}
        self._given: dict[int, list[tuple[bytes, Piece]]] = {}
        # What is the lead's alone is coded while the others are waited for.
        self._early: dict[int, Future[Ready]] = {
            number: pool.submit(self._encode, number, pieces[0][1])
            for number, pieces in self._own.items()
            if len(pieces) == 1 and pieces[0][1].size == schema.blocks[number].elements
        }

    def add(self, peer: bytes, pieces: Sequence[Piece]) -> None:
        """The part of a peer."""
        for piece in pieces:
            self._given.setdefault(piece.block, []).append((peer, piece))

    def check_whole(self) -> None:
        """SchemaError, which names the tensor, if there is an element that nobody gives."""
        for block in self._schema.blocks:
            runs = [(at, at + data.size) for at, data in self._own.get(block.number, ())]
            runs += [(piece.at, piece.at + piece.elements) for _, piece in self._given.get(block.number, ())]
            end = 0
            for first, last in sorted(runs):
                end = max(end, last) if first <= end else end
            if end < block.elements:
                span = next(span for span in block.spans if span.at + span.stop - span.start > end)
                name = self._schema.tensors[span.tensor].name
                raise SchemaError(f"no rank gives element {span.start + end - span.at} of {name!r}")

    def touched(self) -> list[int]:
        """Numbers of the blocks that something of is given."""
        return sorted(self._own.keys() | self._given.keys())

    def ready(self, number: int) -> Ready | None:
        """The block encoded, with the digest of what it leads to. DamageError that names the peer."""
        if number in self._early:
            return self._early[number].result()
        own, given = self._own.get(number, ()), self._given.get(number, [])
        block, old = self._schema.blocks[number], self._baseline.block(number)
        if not own and len(given) == 1 and given[0][1].is_all_of(block):
            peer, piece = given[0]
            if codec.describe(piece.encoded).codec not in (Codec.RAW, Codec.ABS):
                self._patch(old, peer, piece)
                return piece.encoded, piece.digest
        new = old.copy()
        for peer, piece in reversed(given):
            of = slice(piece.at, piece.at + piece.elements)
            patch = self._patch(old[of], peer, piece)
            new[of] = old[of]
            write(new[of], *patch)
        for at, data in own:
            new[at : at + data.size] = data
        return self._encode(number, new)

    def block(self, number: int, arena: Array) -> Array:
        """See Parts: all of it is ready."""
        raise AssertionError(f"block {number} is ready")

    def _encode(self, number: int, new: Array) -> Ready:
        digest = bytearray(codec.HASH_BYTES)
        return codec.encode(self._baseline.block(number), new, self._codecs, hashed=digest), bytes(digest)

    def _patch(self, old: Array, peer: bytes, piece: Piece) -> tuple[Array, Array]:
        """(places, new values) of a piece, seen to lead where it says."""
        digest = bytearray(codec.HASH_BYTES)
        try:
            patch = codec.patch(piece.encoded, old, hashed=digest)
        except WrongBaseError as error:
            raise DamageError(f"its part of block {piece.block} was made on another state", peer=peer) from error
        except DeltaError as error:
            raise DamageError(f"its part of block {piece.block} cannot be decoded: {error}", peer=peer) from error
        if digest != piece.digest:
            raise DamageError(f"its part of block {piece.block} leads to another state than it says", peer=peer)
        return patch
