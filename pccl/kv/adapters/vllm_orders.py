"""vllm_orders.py - what passes between requests, schedulers and workers: plain data that can be pickled. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from pccl.errors import ArgumentError
from pccl.types import PEER_ID_BYTES

__all__ = ["Offering", "Orders", "Pulling", "Remote", "Settings"]

Blocks = dict[str, list[int]]
PeerId = Annotated[str, Meta(pattern=rf"\A[0-9a-f]{{{2 * PEER_ID_BYTES}}}\Z")]


class Remote(Struct, frozen=True):
    """Where the cache of a prompt is: what P's scheduler puts into `kv_transfer_params`, and a router gives to D.

    `transfer_id`: by which it is offered. `peers`: P's workers, by their rank. `pool`: its name. `tokens`: so many of
    the prompt are there. `first`: of each group, which of the request's blocks is the first that is offered.
    """

    transfer_id: Annotated[str, Meta(min_length=1, max_length=255)]
    peers: Annotated[list[PeerId], Meta(min_length=1, max_length=65536)]
    pool: str
    tokens: Annotated[int, Meta(ge=0)]
    first: dict[str, Annotated[int, Meta(ge=0)]]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Remote:
        """Raises ArgumentError that names the field: anybody may have made them."""
        try:
            return msgspec.convert({name: params[name] for name in cls.__struct_fields__ if name in params}, cls)
        except (msgspec.ValidationError, TypeError) as error:
            raise ArgumentError(f"kv_transfer_params: {error}") from None


@dataclass(slots=True)
class Offering:
    """P's worker is to offer these blocks of a request."""

    request: str
    transfer: str
    blocks: Blocks


@dataclass(slots=True)
class Pulling:
    """D's worker is to pull into these blocks, from number `first` of each group's offer on. Without blocks it sets the
    offer free, and nobody waits for it.
    """

    request: str
    transfer: str
    peers: list[str]
    into: Blocks
    first: dict[str, int]


@dataclass(slots=True)
class Orders:
    """Of one step. `aborts`: requests whose pulls are to end."""

    offers: list[Offering] = field(default_factory=list)
    pulls: list[Pulling] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Settings:
    """`kv_connector_extra_config`. `connect`: arguments of pccl.connect; `group` is that of the worker of rank 0,
    others are in the groups after it. `pool`: the same name at P and D. `lease_s`: for which P keeps blocks that
    nobody pulls. `deadline_s`: of a pull. `model_id`: "" for vLLM's name of the model. `load`: "whole": a request
    waits outside of the batch until all is there; "layers": it is in the batch, which waits for each layer when it
    comes to it. Models with several groups load as a whole.
    """

    connect: Mapping[str, Any]
    pool: str = "kv"
    lease_s: float = 120.0
    deadline_s: float = 60.0
    model_id: str = ""
    load: Literal["whole", "layers"] = "whole"

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Settings:
        """Raises ArgumentError that names the field."""
        try:
            given = {name: extra[name] for name in cls.__slots__ if name in extra}
            found = msgspec.convert(given, cls)
        except (msgspec.ValidationError, TypeError) as error:
            raise ArgumentError(f"kv_connector_extra_config: {error}") from None
        for name in ("lease_s", "deadline_s"):
            if not 0 < getattr(found, name) < 1e6:
                raise ArgumentError(f"kv_connector_extra_config: {name} must be a positive number of seconds")
        return found
