"""settings.py - what the arguments of DiLoCo mean: defaults of every mode, and which combinations there are.

Pure. A wrong argument is an ArgumentError that names it, before anything has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pccl.errors import ArgumentError
from pccl.optim.exchange import Dense, Exchange, Radial, Sparse
from pccl.optim.fragments import Spec
from pccl.optim.gossip import Mixing
from pccl.optim.master import OuterFactory
from pccl.optim.modes import Blend, Delayed, Eager, Mode
from pccl.optim.outer import Average, Nesterov

__all__ = ["FAILURES", "MODES", "Config", "ModeName", "OnFailure", "Weight", "resolve"]

ModeName = Literal["diloco", "localsgd", "streaming", "delayed", "eager", "gossip", "sparse"]
OnFailure = Literal["retry", "local", "raise"]
Weight = Literal["uniform", "tokens", "steps"] | Callable[[], float]

MODES = ("diloco", "localsgd", "streaming", "delayed", "eager", "gossip", "sparse")
FAILURES = ("retry", "local", "raise")
_GOSSIP_BOUNDARY_EVERY = 8
_EAGER_RESYNC_EVERY = 16

#: The outer optimizer of each mode unless one is given: the papers' values, but for delayed and eager, whose late means
#: do not bear momentum.
_OUTER: dict[str, OuterFactory] = {
    "diloco": Nesterov(0.7, 0.9),
    "localsgd": Average(1.0),
    "streaming": Nesterov(0.4, 0.9),
    "delayed": Average(0.7),
    "eager": Average(1.0),
    "gossip": Average(1.0),
    "sparse": Average(1.0),
}


@dataclass(frozen=True, slots=True)
class Config:
    """The arguments, completed. `mixing`: of gossip only, which has no `exchange` and `algorithm` of this kind."""

    every: int
    fragments: Spec
    overlap: int
    outer: OuterFactory
    exchange: Exchange
    algorithm: Mode
    mixing: Mixing | None
    boundary_every: int
    resync_every: int
    drifting: bool
    offload: bool
    on_failure: str
    timeout_s: float | None


def resolve(
    *,
    mode: str,
    every: int,
    outer: OuterFactory | None,
    fragments: Spec | None,
    overlap: int | Literal["full"] | None,
    merge: float,
    codec: str | None,
    aggregate: str,
    mixing: Mixing | None,
    sparse: tuple[int, int, float] | None,
    staleness_penalty: float,
    resync_every: int | None,
    offload: bool,
    on_failure: str,
    timeout: float | None,
) -> Config:
    """Completes the arguments of DiLoCo."""
    _choice("mode", mode, MODES)
    _choice("on_failure", on_failure, FAILURES)
    _choice("aggregate", aggregate, ("mean", "rda"))
    if every < 1:
        raise ArgumentError(f"every must be 1 inner step or more, not {every}")
    if not 0.0 <= merge <= 1.0:
        raise ArgumentError(f"merge must be between 0 and 1, not {merge}")
    late = mode in ("delayed", "eager")
    _only(mode, "merge", merge, 0.0, ("streaming",))
    _only(mode, "mixing", mixing, None, ("gossip",))
    _only(mode, "sparse", sparse, None, ("sparse",))
    _only(mode, "staleness_penalty", staleness_penalty, 0.0, ("delayed",))
    _only(mode, "resync_every", resync_every, None, ("eager",))
    if mode in ("gossip", "sparse") and (codec is not None or aggregate != "mean"):
        raise ArgumentError(f"codec and aggregate are not for mode {mode!r}, which has its own format")
    if mode in ("gossip", "sparse") and not offload:
        raise ArgumentError(f"offload=False is not for mode {mode!r}, whose messages are made in host memory")
    if mode == "gossip" and outer is not None:
        raise ArgumentError("mode 'gossip' has its own update: give mixing=, not outer=")
    drifting = mode in ("eager", "gossip")
    return Config(
        every=every,
        fragments=(4 if mode == "streaming" else 1) if fragments is None else fragments,
        overlap=_overlap(mode, every, overlap),
        outer=outer or _OUTER[mode],
        exchange=Sparse(*(sparse or (64, 4096, 0.95))) if mode == "sparse" else _dense(aggregate, codec),
        algorithm=Delayed(staleness_penalty) if mode == "delayed" else Eager() if late else Blend(merge),
        mixing=(mixing or Mixing()) if mode == "gossip" else None,
        boundary_every=_GOSSIP_BOUNDARY_EVERY if mode == "gossip" else 1,
        resync_every=(_EAGER_RESYNC_EVERY if mode == "eager" else 0) if resync_every is None else resync_every,
        drifting=drifting,
        offload=offload,
        on_failure=on_failure,
        timeout_s=timeout,
    )


def _dense(aggregate: str, codec: str | None) -> Exchange:
    return Radial(codec) if aggregate == "rda" else Dense(codec)


def _overlap(mode: str, every: int, overlap: int | Literal["full"] | None) -> int:
    """Steps between sending and landing. Delayed and eager: a whole period, or none."""
    if overlap is None:
        return {"delayed": every, "eager": every, "streaming": min(1, every)}.get(mode, 0)
    steps = every if overlap == "full" else overlap
    if not 0 <= steps <= every:
        raise ArgumentError(f"overlap must be 0 to every ({every}) inner steps or 'full', not {overlap!r}")
    if mode not in ("streaming", "delayed", "eager") and steps:
        raise ArgumentError(f"overlap is not for mode {mode!r}; 'streaming' is DiLoCo with overlap")
    if (mode == "eager" and steps != every) or (mode == "delayed" and steps not in (0, every)):
        raise ArgumentError(f"overlap of mode {mode!r} is a whole period ('full'), not {overlap!r}")
    return steps


def _choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArgumentError(f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}")


def _only(mode: str, what: str, value: object, default: object, modes: tuple[str, ...]) -> None:
    if value != default and mode not in modes:
        raise ArgumentError(f"{what} is for mode {' or '.join(map(repr, modes))}, not {mode!r}")
