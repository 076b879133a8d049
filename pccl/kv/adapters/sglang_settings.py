"""sglang_settings.py - what users tell the SGLang adapter, and what workers of P tell others. Pure, validated."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from pccl.errors import ArgumentError
from pccl.types import PEER_ID_BYTES

__all__ = ["Rank", "Settings", "Topology"]

Count = Annotated[int, Meta(ge=1, le=65536)]
Number = Annotated[int, Meta(ge=0, lt=65536)]
PeerId = Annotated[str, Meta(pattern=rf"\A[0-9a-f]{{{2 * PEER_ID_BYTES}}}\Z")]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """`connect`: arguments of pccl.connect; `group` is that of the worker of rank 0, others are in the groups after it.
    `pool`: the same name at P and D. `deadline_s`: from when D has pages for a request until all is there, P's
    computing included. `bootstrap_s`: for which P waits for D's pages. `part_tokens`: so many of a prompt begin to
    flow together, as soon as they are computed. `model_id`: "" for SGLang's name of the model. `host_memory`: the
    caches lie in host memory though the engine computes elsewhere.
    """

    connect: dict[str, Any]
    pool: str = "kv"
    deadline_s: Annotated[float, Meta(gt=0, lt=1e6)] = 300.0
    bootstrap_s: Annotated[float, Meta(gt=0, lt=1e6)] = 300.0
    part_tokens: Annotated[int, Meta(ge=1)] = 4096
    model_id: str = ""
    host_memory: bool = False

    @classmethod
    def of(cls, text: str | None) -> Settings:
        """Of JSON, which SGLang has no place of its own for. Raises ArgumentError that names the field."""
        if text is None:
            raise ArgumentError('the environment variable PCCL_SGLANG must be JSON, as {"connect": {"group": 3}}')
        try:
            return msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ArgumentError(f"PCCL_SGLANG: {error}") from None


class Rank(Struct, frozen=True, forbid_unknown_fields=True):
    """One worker of P. `follows_room`: rooms are spread over the replicas by their number."""

    dp_rank: Number
    tp_rank: Number
    dp_size: Count
    tp_size: Count
    peer: PeerId
    pool: str
    page_size: Count
    kv_cache_dtype: str
    follows_room: bool

    def shape(self) -> tuple[Any, ...]:
        """What all workers of an engine have in common."""
        return self.dp_size, self.tp_size, self.pool, self.page_size, self.kv_cache_dtype, self.follows_room


class Topology(Struct, frozen=True, forbid_unknown_fields=True):
    """All workers of P. The names of SGLang's decoder: `dp_size`, `follow_bootstrap_room`, `page_size`."""

    ranks: Annotated[tuple[Rank, ...], Meta(min_length=1, max_length=65536)]

    @property
    def dp_size(self) -> int:
        """Replicas."""
        return self.ranks[0].dp_size

    @property
    def follow_bootstrap_room(self) -> bool:
        """Whether a room's number says which replica has it."""
        return self.ranks[0].follows_room

    @property
    def complete(self) -> bool:
        """Whether all workers are there."""
        return len(self.ranks) == self.ranks[0].dp_size * self.ranks[0].tp_size

    def rank(self, dp_rank: int, tp_rank: int) -> Rank | None:
        """One of them."""
        return next((one for one in self.ranks if (one.dp_rank, one.tp_rank) == (dp_rank, tp_rank)), None)

    def differs(self, ours: Rank) -> str:
        """Why these workers cannot serve us, in words; "": they can."""
        theirs = self.ranks[0]
        for name in ("tp_size", "page_size", "kv_cache_dtype", "pool"):
            here, there = getattr(ours, name), getattr(theirs, name)
            if here != there:
                return f"{name} is {there!r} at the prefill server, {here!r} here"
        return ""
