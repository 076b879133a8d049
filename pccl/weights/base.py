"""base.py - version 0: the public checkpoint that everyone loads locally, from safetensors files or from tensors.

The library `safetensors` says what is in a file and refuses what is none; the bytes are views of a map of the file,
because numpy has no bfloat16 and no fp8, and nothing of many GiB is copied twice. Nothing is converted: dtypes and
shapes must be those of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pccl.weights.certificate import Version, base_lineage, state_digest
from pccl.weights.digests import quick
from pccl.weights.errors import DamageError, SchemaError
from pccl.weights.files import mapped
from pccl.weights.schema import Schema, Tensor
from pccl.weights.shadow import Shadow

__all__ = ["SAFETENSORS_DTYPES", "fill", "load", "safetensors_in", "schema_of", "version_zero"]

SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def schema_of(directory: str | Path) -> Schema:
    """That of all tensors in a directory of safetensors, in the order of their names."""
    found = safetensors_in(directory)
    return Schema(Tensor(name, shape, dtype) for name, (dtype, shape, _) in sorted(found.items()))


def load(directory: str | Path, shadow: Shadow) -> None:
    """Fills a shadow with version 0 from a directory of safetensors. SchemaError if tensors are missing or of another
    shape or dtype; DamageError if a file is no safetensors file.
    """
    found = safetensors_in(directory)
    for number, tensor in enumerate(shadow.schema.tensors):
        if tensor.name not in found:
            raise SchemaError(f"{directory} has no tensor {tensor.name!r}")
        dtype, shape, data = found[tensor.name]
        if (dtype, shape) != (tensor.dtype, tensor.shape):
            raise SchemaError(f"{tensor.name!r} is {dtype} {shape}, the schema says {tensor.dtype} {tensor.shape}")
        shadow.schema.view(shadow.arena, number).view(np.uint8)[:] = np.frombuffer(data, np.uint8)
    begin(shadow)


def fill(shadow: Shadow, named: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
    """Fills a shadow with version 0 from tensors or arrays. SchemaError if they are not those of its schema."""
    missing = copy_into(shadow.schema, shadow.arena, named)
    if missing:
        raise SchemaError(f"the base has no tensor {missing[0]!r}")
    begin(shadow)


def copy_into(schema: Schema, arena: np.ndarray[Any, Any], named: Any) -> list[str]:
    """Copies tensors into an arena; gives the names of those that did not come."""
    seen = set()
    for name, value in named.items() if isinstance(named, Mapping) else named:
        number = schema.index.get(name)
        if number is None:
            raise SchemaError(f"the schema has no tensor {name!r}")
        schema.view(arena, number)[:] = schema.flat(number, value)
        seen.add(name)
    return [tensor.name for tensor in schema.tensors if tensor.name not in seen]


def begin(shadow: Shadow) -> None:
    """What is in the shadow is version 0."""
    digests = shadow.digest_blocks()
    shadow.begin(version_zero(shadow.schema, digests), digests)


def version_zero(schema: Schema, digests: Iterable[bytes]) -> Version:
    """The version of a base with blocks of these digests."""
    return Version(0, base_lineage(schema.hash, state_digest(schema.hash, tuple(digests))))


def digests_of(schema: Schema, arena: np.ndarray[Any, Any], pool: Executor) -> tuple[bytes, ...]:
    """Of the blocks in an arena."""
    return tuple(pool.map(lambda block: quick(schema.block_view(arena, block)), schema.blocks))


def safetensors_in(directory: str | Path) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    """(dtype, shape, bytes) of every tensor in the files of a directory. DamageError if one is no safetensors file."""
    found: dict[str, tuple[str, tuple[int, ...], memoryview]] = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        data = mapped(path)
        at = 8 + int.from_bytes(data[:8], "little")
        try:
            with safe_open(path, "np") as file:  # it refuses offsets with gaps: so sizes say where tensors are
                for name in file.offset_keys():
                    entry = file.get_slice(name)
                    made = Tensor(name, tuple(entry.get_shape()), SAFETENSORS_DTYPES[entry.get_dtype()])
                    found[name] = (made.dtype, made.shape, data[at : at + made.nbytes])
                    at += made.nbytes
        except (SafetensorError, KeyError) as error:
            raise DamageError(f"{path} is no safetensors file: {error!r}") from error
    return found
