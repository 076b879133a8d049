"""engine.py - what an adapter is, and the order of things: all work first, then the pause, then the shadow.

An adapter turns an update into one call, `apply`, that only writes. While `prepare` works, the engine serves; it stands
still for `apply` alone. The shadow follows when the engine goes on already. What is applied is absolute, so an `apply`
that failed half-way is mended by applying again: the update stays at hand until it is committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from pccl.weights.errors import WeightsError
from pccl.weights.update import Update

__all__ = ["Adapter", "Apply", "EngineError", "Installed", "install"]

Apply = Callable[[], object]


class EngineError(WeightsError):
    """The engine does not know a tensor, or not in this shape or dtype, or refused it; the text names the tensor.
    Raised by `prepare`: the engine is untouched. Raised by `apply`: it may hold a part of the update; apply it again.
    """


class Adapter(Protocol):
    """An engine that takes updates."""

    def prepare(self, update: Update) -> Apply:
        """Does all that can be done while the engine serves, and checks all names, shapes and dtypes. Gives what has to
        be called while it does not. May block for as long as copying the changed tensors takes. EngineError.
        """


@dataclass(frozen=True, slots=True)
class Installed:
    """How long it took. `prepare_s`: while the engine served. `pause_s`: it stood still, from asking for the pause
    until it was over; `apply_s` of that, writing. `commit_s`: all of the commit, with the shadow.
    """

    version: int
    prepare_s: float
    pause_s: float
    apply_s: float
    commit_s: float


def install(
    update: Update,
    adapter: Adapter,
    paused: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Installed:
    """Brings an engine, and then the shadow, to the update. `paused()`: a context within which the engine stands still;
    an update without changes does not ask for it. EngineError, or what the engine or the shadow raises: the receiver's
    version stays, and the same update can be installed again.
    """
    started = time.perf_counter()
    apply = adapter.prepare(update)
    prepared = applied = resumed = began = time.perf_counter()
    with update.commit():
        if update.changed:
            with paused():
                began = time.perf_counter()
                apply()
                applied = time.perf_counter()
            resumed = time.perf_counter()
        else:
            apply()
    ended = time.perf_counter()
    return Installed(
        update.version, prepared - started, resumed - prepared, max(0.0, applied - began), ended - prepared
    )
