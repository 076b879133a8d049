"""parts.py - the chunks that are wanted of a payload that is whole at its source: what a filtered receiver fetches.

The source says how long payload and manifest are. Prelude and manifest come first and say where every block is; then
come the chunks that hold wanted blocks, in spans, and nothing else. Each is verified by its hash in the manifest as it
comes; what is damaged is asked for again, at the third of the next source. Spans are of the payload; layout.py says
where in the region they are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pccl.errors import Closed
from pccl.transfer.manifest import key_of
from pccl.transfer.transfers import Transfers
from pccl.types import Status
from pccl.weights.errors import DamageError
from pccl.weights.layout import SPECIAL, Run, payload_bytes_max, runs_of
from pccl.weights.manifest import PRELUDE_BYTES, Manifest
from pccl.weights.payload import Payload
from pccl.weights.stream import STRIKES, WAIT_S, lazy_memory

__all__ = ["PartsIn"]

READ_BYTES = 1 << 20
WINDOW = 64

Span = tuple[int, int]


def spans_of(manifest: Manifest, wanted: Callable[[int], bool]) -> list[tuple[Span, list[int]]]:
    """What to read for the wanted blocks: parts of the payload, whole chunks each, at most READ_BYTES or one chunk."""
    spans: list[tuple[Span, list[int]]] = []
    for chunk in sorted({manifest.chunk_of(record.offset) for record in manifest.records if wanted(record.block)}):
        start, end = manifest.span(chunk)
        if spans and spans[-1][0][1] == start and end - spans[-1][0][0] <= READ_BYTES:
            spans[-1] = (spans[-1][0][0], end), [*spans[-1][1], chunk]
        else:
            spans.append(((start, end), [chunk]))
    return spans


class PartsIn:
    """An Incoming of which only the blocks that are `wanted` come; the rest of its memory is zeros. `sizes`: bytes of
    the payload, and of its end from the manifest on. Callbacks come on the thread of transfers: `on_grown` when all
    that is wanted is there and right, `on_failed` when no source is left.
    """

    def __init__(
        self,
        transfers: Transfers,
        name: str,
        generation: int,
        slots: int,
        sizes: tuple[int, int],
        sources: Sequence[bytes],
        wanted: Callable[[int], bool],
        *,
        on_grown: Callable[[PartsIn], None],
        on_failed: Callable[[PartsIn, str], None],
    ) -> None:
        total, tail = sizes
        if not 0 < tail <= total - PRELUDE_BYTES or slots < SPECIAL or total > payload_bytes_max(slots):
            raise DamageError(f"a payload in {slots} slots cannot have {total} bytes, {tail} of them manifest")
        self._transfers, self._key, self._generation = transfers, key_of("weights", name), generation
        self._sources, self._wanted = list(sources), wanted
        self._on_grown, self._on_failed = on_grown, on_failed
        self._lock = threading.RLock()
        self._reads: dict[Run, Any] = {}
        self._chunks: dict[Span, list[int]] = {}
        self._ends = frozenset({(0, PRELUDE_BYTES), (total - tail, total)})
        self._missing: dict[Span, set[Run]] = {}
        self._queue: deque[tuple[Span, Run]] = deque()
        self._payload: Payload | None = None
        self._strikes = 0
        self._ended = False
        self.name = name
        self.total: int | None = total
        self.memory = lazy_memory(total)
        self.contiguous = 0
        self.islands: Sequence[Span] = ()
        self.received_bytes = 0
        with self._lock:
            self._want(sorted(self._ends))
            self._ask_more()

    @property
    def complete(self) -> bool:
        """All that is wanted is there."""
        return self._payload is not None and not self._missing

    @property
    def stranded_s(self) -> float:
        """See StreamIn: never."""
        return 0.0

    def cancel(self) -> None:
        """No callback comes any more, but for one that is under way."""
        with self._lock:
            self._ended = True
            self._cancel_reads()

    def reconsider(self, source: bytes | None = None) -> None:
        """A source is there (again)."""
        with self._lock:
            if source is not None and source not in self._sources:
                self._sources.append(source)

    def _cancel_reads(self) -> None:
        for read in list(self._reads.values()):
            self._transfers.cancel_read(read)

    def _want(self, spans: Iterable[Span]) -> None:
        assert self.total is not None
        for span in spans:
            runs = list(runs_of(self.total, *span))
            self._missing[span] = set(runs)
            self._queue.extend((span, run) for run in runs)

    def _ask_more(self) -> None:
        while self._queue and self._sources and len(self._reads) < WINDOW:
            span, run = self._queue.popleft()
            memory, source = np.empty(run.nbytes, np.uint8), self._sources[0]

            def done(
                status: Status, span: Span = span, run: Run = run, memory: Any = memory, source: bytes = source
            ) -> None:
                self._on_read(span, run, memory, source, status)

            try:
                self._reads[run] = self._transfers.read(
                    source, self._key, self._generation, run.at, memory, done, priority="normal", seconds=WAIT_S
                )
            except Closed:
                self._ended = True
                return

    def _on_read(self, span: Span, run: Run, memory: np.ndarray[Any, Any], source: bytes, status: Status) -> None:
        failed = False
        with self._lock:
            self._reads.pop(run, None)
            if self._ended or status == Status.ECLOSED:
                return
            if status != Status.OK:
                self._queue.append((span, run))
                if status not in (Status.ETIMEOUT, Status.ECANCELLED):
                    failed = self._give_up(source, status)
            elif not self._take(span, run, memory):
                failed = self._give_up(source, status)
            self._ask_more()
            self._ended |= self.complete
        if failed:
            self._on_failed(self, "damaged" if status == Status.OK else Status(status).name)
        elif self.complete:
            self._on_grown(self)

    def _take(self, span: Span, run: Run, memory: np.ndarray[Any, Any]) -> bool:
        """False: what came is damaged, and all of its span is asked for again."""
        self.received_bytes += len(memory)
        for part in run.parts:
            at = part.at - run.at
            self.memory[part.start : part.end] = memory[at : at + part.end - part.start]
        self._missing[span].discard(run)
        if self._missing[span]:
            return True
        try:
            for chunk in self._chunks.get(span, ()):
                assert self._payload is not None
                self._payload.check_chunk(chunk)
            del self._missing[span]
            if not self._missing and self._payload is None:
                self._begin()
        except DamageError:
            self._want([span] if span not in self._ends else self._ends)
            return False
        return True

    def _begin(self) -> None:
        """Prelude and manifest are there: now it is known what else is wanted. DamageError: one of them is no good."""
        self._payload = Payload(self.memory.data[: self.total])
        self._chunks = dict(spans_of(self._payload.manifest, self._wanted))
        self._want(self._chunks)

    def _give_up(self, source: bytes, status: Status) -> bool:
        """Goes on with the next source; True if there is none."""
        if source != self._sources[0]:
            return False
        if status == Status.OK:
            self._strikes += 1
            if self._strikes < STRIKES:
                return False
        self._strikes = 0
        del self._sources[0]
        self._ended = not self._sources
        self._cancel_reads()
        return self._ended
