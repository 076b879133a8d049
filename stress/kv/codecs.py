"""codecs.py - how small and how fast each codec makes KV caches, beside zstd on a plane of exponents and memcpy.

    python -m stress.kv.codecs [--mib 32] [--rounds 5] [--json]

Two caches. "normal": independent values, each channel with a spread of its own. "gpt": of the small GPT of
stress/weights/traces.py, trained for a while on Python's own sources; places of the text mean more to it than words, so
that its caches repeat themselves over windows as those of large models do not: what zstd makes of that is not to be
expected elsewhere. Of each codec: bytes against plain ones, GB/s of plain bytes by one thread (the best of `rounds`,
which take turns), the greatest error beside the greatest value, and the fastest link on which it pays.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import zstandard
from torch import Tensor

from pccl.kv.codecs import CODECS, PAYS
from pccl.kv.layout import Group
from stress.weights import traces

Slabs = np.ndarray[Any, Any]
TOKENS, SIDE, STEPS, HEAD = 16, 256, 60, 64


def group() -> Group:
    """One layer of the model."""
    heads = SIDE // HEAD
    return Group(
        name="full",
        layers=("L0",),
        block_tokens=TOKENS,
        heads=(0, heads, heads),
        planes=2,
        bytes_per_block_layer=2 * TOKENS * SIDE * 2,
    )


def normal(nbytes: int) -> Slabs:
    """Slabs of [keys or values, token, head, channel]."""
    chance = np.random.default_rng(0)
    count = max(1, nbytes // group().bytes_per_block_layer)
    values = chance.standard_normal((count, 2, TOKENS, SIDE), np.float32)
    values *= np.exp(chance.standard_normal((2, 1, SIDE), np.float32))
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(count, -1)


def gpt(nbytes: int) -> Slabs:
    """The same, of as many windows of text as it takes."""
    torch.manual_seed(0)
    data, model = traces.text(), traces.Gpt(SIDE)
    for _ in traces.train(model, data, traces.WARM_RATE, STEPS, traces.WARM_BATCH, seed=1):
        pass
    found: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        found.append(output[..., SIDE:].reshape(-1, TOKENS, 2, SIDE).transpose(1, 2).bfloat16().contiguous())

    for block in model.blocks:
        block.qkv.register_forward_hook(keep)
    windows = traces.batches(data, 8, seed=3)
    with torch.no_grad():
        while sum(one.numel() for one in found) * 2 < nbytes:
            model(next(windows)[0])
    slabs = torch.cat(found).flatten(1).view(torch.int16).numpy().view(np.uint8)
    return np.ascontiguousarray(slabs[: max(1, nbytes // slabs.shape[1])])


def zstd_encode(slabs: Slabs) -> tuple[Slabs, bytes]:
    """Sign and mantissa as they are, exponents by zstd: what csrc/exponents.c is measured against."""
    values = slabs.view(np.uint16)
    rests = (values << 1 | values >> 15).astype(np.uint8)
    return rests, zstandard.ZstdCompressor(level=1).compress((values >> 7).astype(np.uint8).tobytes())


def zstd_decode(rests: Slabs, packed: bytes) -> Slabs:
    """The reverse."""
    exponents = np.frombuffer(zstandard.ZstdDecompressor().decompress(packed), np.uint8).reshape(rests.shape)
    wide = rests.astype(np.uint16)
    return (exponents.astype(np.uint16) << 7 | wide >> 1 | wide << 15).view(np.uint8)


class Case:
    """One way: `encode` gives something, `decode` makes slabs of that; `size` its bytes."""

    def __init__(self, encode: Callable[[], Any], decode: Callable[[Any], Slabs], size: Callable[[Any], int]) -> None:
        self._encode, self._decode, self._size = encode, decode, size
        self.encode_s = self.decode_s = np.inf
        self.nbytes = 0
        self.slabs: Slabs

    def measure(self) -> None:
        """Once more."""
        begin = time.perf_counter()
        data = self._encode()
        middle = time.perf_counter()
        self.slabs = self._decode(data)
        end = time.perf_counter()
        self.encode_s, self.decode_s = min(self.encode_s, middle - begin), min(self.decode_s, end - middle)
        self.nbytes = self._size(data)


def cases(slabs: Slabs) -> dict[str, Case]:
    """By name."""
    of = group()

    def by(name: str) -> Case:
        codec = CODECS[name]

        target = np.empty_like(slabs)

        def decode(data: Slabs) -> Slabs:
            codec.decode(data, target, of)
            return target

        return Case(lambda: codec.encode(slabs, of), decode, lambda data: int(data.size))

    zstd = Case(lambda: zstd_encode(slabs), lambda data: zstd_decode(*data), lambda d: d[0].size + len(d[1]))
    return {
        "memcpy": Case(slabs.copy, np.copy, lambda data: int(data.size)),
        **{name: by(name) for name in CODECS if name != "raw"},
        "exponents by zstd": zstd,
    }


def floats(slabs: Slabs) -> Any:
    """Their values."""
    return (slabs.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def row(slabs: Slabs, case: Case) -> dict[str, float]:
    """What is printed of one."""
    ratio = slabs.size / case.nbytes
    encode, decode = slabs.size / case.encode_s / 1e9, slabs.size / case.decode_s / 1e9
    error = float(np.abs(floats(case.slabs) - floats(slabs)).max() / np.abs(floats(slabs)).max())
    pays_to = 8 * min(encode, decode) / PAYS if ratio > PAYS else 0.0
    return {"of_plain": 1 / ratio, "encode_gb_per_s": encode, "decode_gb_per_s": decode, "error": error,
            "pays_to_gbit_per_s": pays_to}  # fmt: skip


def measured(slabs: Slabs, rounds: int) -> dict[str, dict[str, float]]:
    """The rows of a cache."""
    found = cases(slabs)
    for _ in range(rounds):
        for case in found.values():
            case.measure()
    return {name: row(slabs, case) for name, case in found.items()}


def show(data: str, rows: dict[str, dict[str, float]], as_json: bool) -> None:
    """As a table, or as JSON."""
    if as_json:
        for name, one in rows.items():
            print(json.dumps({"cache": data, "codec": name} | one))
        return
    print(f"{data:<18} {'of plain':>9} {'encode GB/s':>12} {'decode GB/s':>12} {'error':>9} {'pays to Gbit/s':>15}")
    for name, one in rows.items():
        print(
            f"{name:<18} {one['of_plain']:>9.3f} {one['encode_gb_per_s']:>12.2f} {one['decode_gb_per_s']:>12.2f} "
            f"{one['error']:>9.1e} {one['pays_to_gbit_per_s']:>15.1f}"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lossy: set[str] = set()
    for data, slabs in (("normal", normal(arguments.mib << 20)), ("gpt", gpt(arguments.mib << 20))):
        rows = measured(slabs, arguments.rounds)
        lossy |= {name for name, one in rows.items() if one["error"] and (name not in CODECS or CODECS[name].lossless)}
        show(data, rows, arguments.json)
    for name in sorted(lossy):
        print(f"BROKEN {name} is not lossless")
    sys.exit(1 if lossy else 0)


if __name__ == "__main__":
    main()
