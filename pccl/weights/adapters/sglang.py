"""sglang.py - SGLang: `update_weights_from_tensor`, with whole tensors, or with patches for a loader of ours.

With `load_format=None` the engine's model loads whole tensors, of those that changed. With patches

    python -m sglang.launch_server --custom-weight-loader pccl.weights.adapters.sglang.load_patches ...
    SGLangAdapter(engine, patches=True)

only changed elements go to the engine's processes, as three tensors, and are written in place there; the engine's
parameters must then be those of the update: names, shapes and dtypes (no fused projections, no tensor parallelism).
Nothing of sglang is imported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from pccl.weights.adapters.engine import Apply, EngineError
from pccl.weights.adapters.loader import changed_tensors
from pccl.weights.adapters.module import pieces, tensors_of
from pccl.weights.adapters.scatter import scatter
from pccl.weights.schema import Tensor, uint_of
from pccl.weights.update import Patch, Update

__all__ = ["LOADER", "SGLangAdapter", "load_patches", "packed"]

LOADER = "pccl.weights.adapters.sglang.load_patches"
_ROWS, _PLACES, _VALUES = "pccl.rows", "pccl.places", "pccl.values"
_WHAT = list[tuple[str, str, tuple[int, ...], int]]


class SGLangAdapter:
    """`engine`: sglang's Engine, or what has its `update_weights_from_tensor(named_tensors, load_format, flush_cache)`.
    `patches`: see the header. `flush_cache`: drops prefixes that the old weights made (keep it, unless you do it).
    """

    def __init__(self, engine: Any, *, patches: bool = False, flush_cache: bool = True) -> None:
        self._engine, self._patches, self._flush = engine, patches, flush_cache

    def prepare(self, update: Update) -> Apply:
        """See Adapter. With patches, names are checked by the engine's processes, before they write."""
        named = packed(update.patches()) if self._patches else list(changed_tensors(update))
        load_format = LOADER if self._patches else None

        def apply() -> None:
            if not update.changed:
                return
            try:
                said = self._engine.update_weights_from_tensor(
                    named_tensors=named, load_format=load_format, flush_cache=self._flush
                )
            except Exception as error:
                raise EngineError(f"sglang refused version {update.version}: {error}") from error
            if isinstance(said, tuple | list) and said and not said[0]:
                raise EngineError(f"sglang refused version {update.version}: {said[1] if len(said) > 1 else said}")

        return apply


def packed(patches: Iterable[Patch]) -> list[tuple[str, Any]]:
    """Patches as three tensors by name: what there is (msgpack), places, values."""
    import torch

    some = list(patches)
    rows = msgspec.msgpack.encode([[p.name, p.dtype, list(p.shape), len(p.index)] for p in some])
    places = np.concatenate([p.index for p in some]) if some else np.empty(0, np.int64)
    values = np.concatenate([p.values.view(np.uint8) for p in some]) if some else np.empty(0, np.uint8)
    named = {_ROWS: np.frombuffer(rows, np.uint8).copy(), _PLACES: places, _VALUES: values}
    return [(name, torch.from_numpy(array)) for name, array in named.items()]


def load_patches(model: Any, named_tensors: Iterable[tuple[str, Any]]) -> None:
    """The custom weight loader: writes what `packed` gave to a model's parameters, in place. EngineError names a tensor
    that the model has not, or has otherwise; then nothing has been written.
    """
    scatter(pieces(tensors_of(model), _unpacked(dict(named_tensors))))()


def _unpacked(named: dict[str, Any]) -> list[Patch]:
    try:
        rows, places, values = (named[name].cpu().numpy() for name in (_ROWS, _PLACES, _VALUES))
        what = msgspec.msgpack.decode(rows.tobytes(), type=_WHAT)
    except (KeyError, msgspec.MsgspecError) as error:
        raise EngineError(f"these are no patches of pccl: {error!r}") from error
    made = []
    at = byte = 0
    for number, (name, dtype, shape, count) in enumerate(what):
        width = Tensor(name, shape, dtype).width
        piece = values[byte : byte + count * width]
        if count < 0 or len(places) < at + count or len(piece) != count * width:
            raise EngineError(f"patches end within those of {name!r}")
        made.append(Patch(name, places[at : at + count], piece.copy().view(uint_of(width)), shape, dtype, number))
        at, byte = at + count, byte + count * width
    return made
