"""election.py - what peers say of their contents, and which of these is the right one. Pure."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pccl.errors import ProtocolError
from pccl.transfer.target import Bytes

__all__ = ["STRATEGIES", "Strategy", "Summary", "describe_differences", "elect"]

Strategy = Literal["majority", "send", "receive"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
MAJORITY, SEND, RECEIVE = range(3)
_SUMMARY = struct.Struct("<BBBBIQQ16s16s16s")
_VERSION = 2
_NAMED_DIFFERENCES = 8


@dataclass(slots=True, frozen=True)
class Summary:
    """What a peer says of itself. `whole`: False while its entries are what a prefetch has left. `generation`: the
    newest that it has offered. `content`: the root of what must be equal.
    """

    strategy: int
    fresh: bool
    whole: bool
    entries: int
    schema_bytes: int
    generation: int
    schema: bytes
    content: bytes
    nonce: bytes

    def pack(self) -> Bytes:
        """As bytes for the wire."""
        return np.frombuffer(
            _SUMMARY.pack(
                _VERSION,
                self.strategy,
                self.fresh,
                self.whole,
                self.entries,
                self.schema_bytes,
                self.generation,
                self.schema,
                self.content,
                self.nonce,
            ),
            np.uint8,
        )

    @classmethod
    def unpack(cls, row: Bytes) -> Summary:
        """From the wire."""
        version, strategy, fresh, whole, entries, schema_bytes, generation, *digests = _SUMMARY.unpack(row.tobytes())
        if version != _VERSION or strategy > RECEIVE:
            raise ProtocolError(f"sync_state: a peer speaks version {version} where {_VERSION} is spoken")
        return cls(strategy, bool(fresh), bool(whole), entries, schema_bytes, generation, *digests)


def elect(summaries: Sequence[Summary]) -> bytes | None:
    """The content that shall be everybody's, from the summaries in the order of ranks; None if nobody offers any.

    Peers that send decide alone; else those that take part in the majority and have been here before; else those that
    came just now. A mixture is nobody's content. The most frequent content wins, ties go to the lowest rank.
    """
    summaries = [s for s in summaries if s.whole]
    offers = [s for s in summaries if s.strategy == SEND]
    offers = offers or [s for s in summaries if s.strategy == MAJORITY and not s.fresh]
    offers = offers or [s for s in summaries if s.strategy == MAJORITY]
    if not offers:
        return None
    votes = Counter(s.content for s in offers)  # in the order of first appearance, which max keeps
    return max(votes, key=votes.__getitem__)


def describe_differences(schemas: Sequence[Mapping[str, str]]) -> str:
    """Names every key that is not the same on all ranks, with both sides."""
    differences = []
    for name in sorted(set().union(*schemas)):
        sides: dict[str, list[int]] = {}
        for rank, schema in enumerate(schemas):
            sides.setdefault(schema.get(name, "missing"), []).append(rank)
        if len(sides) > 1:
            words = ", ".join(f"{label} at rank {', '.join(map(str, ranks))}" for label, ranks in sides.items())
            differences.append(f"{name!r} is {words}")
    more = len(differences) - _NAMED_DIFFERENCES
    return "; ".join(differences[:_NAMED_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
