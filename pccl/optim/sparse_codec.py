"""sparse_codec.py - what a SparseLoCo round sends: the largest values of every chunk, in 14 bits each; the rest kept.

Pure: torch tensors on the CPU in, bytes out. The payload of a chunk of c values of which n are kept:

    codebook   4 bf16, little-endian: small positive, large positive, small negative, large negative
    indices    n of 12 bits, strictly increasing, two in three bytes: a's low 8, a's high 4 | b's low 4 << 4, b's high 8
    codes      n of 2 bits, four in a byte, the first lowest: which of the codebook's values

Bits beyond the last index or code are 0. An entry of the codebook is the mean of the kept values of its bin (0 for an
empty bin); a sign's values above the mean of that sign's kept values are its large ones. bf16 has the range of fp32, so
that no small delta becomes 0 and no large one infinite, and its rounding stays in the error feedback like all that was
not sent. 64 of 4096: 8 + 96 + 16 = 120 bytes, or 0.234 bit per parameter. The last, shorter chunk keeps the same share
(rounded up), so that a tail does not spoil that.

Sums run one by one in fp64, ties go to the lowest index: the same bits from the same input on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pccl.errors import ArgumentError, ProtocolError

__all__ = ["BETA", "CHUNK", "KEEP", "ErrorFeedback", "accumulate", "decode", "encode", "payload_bytes"]

BETA: Final = 0.95
CHUNK: Final = 4096
KEEP: Final = 64
CHUNK_MAX: Final = 1 << 12  # indices have 12 bits
_CODEBOOK_BYTES: Final = 8
_ROWS_AT_ONCE: Final = 1024  # bounds the memory that encoding takes beside its input


class _Part(NamedTuple):
    """Chunks of one length that lie side by side: where they begin among values and bytes, and what each keeps."""

    start: int
    chunks: int
    length: int
    kept: int
    offset: int

    @property
    def codes_at(self) -> int:
        return _CODEBOOK_BYTES + (self.kept * 12 + 7) // 8

    @property
    def chunk_bytes(self) -> int:
        return self.codes_at + (self.kept + 3) // 4


def _parts(numel: int, k: int, chunk: int) -> Iterator[_Part]:
    """The full chunks, and the shorter one at the end; either may be missing."""
    if not 1 <= chunk <= CHUNK_MAX:
        raise ArgumentError(f"chunk must be from 1 to {CHUNK_MAX} values, not {chunk}")
    if k < 1:
        raise ArgumentError(f"k must be 1 kept value per chunk at least, not {k}")
    if numel < 0:
        raise ArgumentError(f"numel must not be negative, not {numel}")
    (chunks, tail), kept = divmod(numel, chunk), min(k, chunk)
    full = _Part(0, chunks, chunk, kept, 0)
    if chunks:
        yield full
    if tail:
        yield _Part(numel - tail, 1, tail, -(-kept * tail // chunk), chunks * full.chunk_bytes)


def payload_bytes(numel: int, k: int = KEEP, chunk: int = CHUNK) -> int:
    """Length of every payload of that many values."""
    return sum(part.chunks * part.chunk_bytes for part in _parts(numel, k, chunk))


def encode(flat: Tensor, k: int = KEEP, chunk: int = CHUNK) -> Tensor:
    """The `k` values of largest magnitude of every `chunk`: uint8 [payload_bytes]. `flat`: fp32 [numel], not changed.

    Raises ArgumentError for another dtype or shape, and for NaN and infinity.
    """
    _check("flat", flat, flat.numel())
    payload = torch.empty(payload_bytes(flat.numel(), k, chunk), dtype=torch.uint8)
    for part in _parts(flat.numel(), k, chunk):
        values = flat[part.start : part.start + part.chunks * part.length].view(part.chunks, part.length)
        target = payload[part.offset : part.offset + part.chunks * part.chunk_bytes].view(part.chunks, -1)
        for rows in range(0, part.chunks, _ROWS_AT_ONCE):
            target[rows : rows + _ROWS_AT_ONCE] = _encode_rows(values[rows : rows + _ROWS_AT_ONCE], part)
    return payload


def decode(payload: Tensor, numel: int, k: int = KEEP, chunk: int = CHUNK) -> Tensor:
    """What was sent, 0 elsewhere: fp32 [numel]. `payload`: uint8, as from the network.

    Raises ProtocolError if it is not what `encode` could have made of `numel` values; the text says what is wrong.
    """
    flat = torch.zeros(numel, dtype=torch.float32)
    for places, values in _entries("payload", payload, numel, k, chunk):
        flat[places] = values
    return flat


def accumulate(
    payloads: Sequence[Tensor], weights: Sequence[float], numel: int, k: int = KEEP, chunk: int = CHUNK
) -> Tensor:
    """Σ weight · decode(payload) in the given order: fp32 [numel], the same bits on every machine.

    Raises ProtocolError for a malformed payload (also of weight 0), which it names by its place in the order, and
    ArgumentError for weights that do not fit.
    """
    if len(weights) != len(payloads):
        raise ArgumentError(f"{len(payloads)} payloads need as many weights, not {len(weights)}")
    total = torch.zeros(numel, dtype=torch.float32)
    for number, (payload, weight) in enumerate(zip(payloads, weights, strict=True)):
        if not (math.isfinite(weight) and weight >= 0):
            raise ArgumentError(f"the weight of payload {number} is {weight}; it must be finite and not negative")
        factor = torch.tensor(weight, dtype=torch.float32)
        for places, values in _entries(f"payload {number}", payload, numel, k, chunk):
            total[places] += values * factor  # no place comes twice; product and sum are rounded apart everywhere
    return total


class ErrorFeedback:
    """What a peer has not sent yet: e ← β e + Δ, of which a payload is sent, and e keeps the rest.

    It is the peer's own: a joiner begins with zeros, and what a dead peer kept is lost. A round that is tried again
    sends the payload that `compress` returned; one that is dropped gives it back.
    """

    def __init__(self, numel: int, beta: float = BETA, k: int = KEEP, chunk: int = CHUNK) -> None:
        if not 0 <= beta <= 1:
            raise ArgumentError(f"beta must be from 0 to 1, not {beta}")
        payload_bytes(numel, k, chunk)  # refuses what no payload can have
        self._beta, self._k, self._chunk = beta, k, chunk
        self._error = torch.zeros(numel, dtype=torch.float32)

    def compress(self, delta: Tensor) -> Tensor:
        """The payload of a round, uint8. `delta`: fp32 [numel], not changed. After an ArgumentError e is as before."""
        _check("delta", delta, self._error.numel())
        error = self._error * self._beta + delta
        payload = encode(error, self._k, self._chunk)
        for places, values in _entries("payload", payload, error.numel(), self._k, self._chunk):
            error[places] -= values
        self._error = error
        return payload

    def give_back(self, payload: Tensor) -> None:
        """e ← e + what that payload, which nobody made use of, holds. Raises ProtocolError for a malformed one."""
        self._error = self._error + decode(payload, self._error.numel(), self._k, self._chunk)

    @property
    def state(self) -> Tensor:
        """e itself, fp32 [numel]: valid until the next `compress`, `give_back` or `load`, and not to be written."""
        return self._error

    def load(self, state: Tensor) -> None:
        """Takes a copy of such a state. Raises ArgumentError for another dtype or size, and for NaN and infinity."""
        _check("state", state, self._error.numel())
        self._error = state.detach().clone()


# -- a chunk a row ---------------------------------------------------------------------------------------------------


def _check(what: str, tensor: Tensor, numel: int) -> None:
    if tensor.dtype != torch.float32 or tensor.shape != (numel,) or tensor.device.type != "cpu":
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        raise ArgumentError(f"{what} must be {numel} float32 in a row on the CPU, not {got}")
    if not torch.isfinite(tensor).all():
        where = int((~torch.isfinite(tensor)).nonzero()[0])
        raise ArgumentError(f"{what}: value {where} of {numel} is {tensor[where].item()}")


def _encode_rows(rows: Tensor, part: _Part) -> Tensor:
    """fp32 [chunks, length] -> uint8 [chunks, chunk_bytes]."""
    indices = _largest(rows.abs(), part.kept)
    values = rows.gather(1, indices).double()
    sign = (values < 0).long()
    size = values.abs()
    large = size > _means(size, sign, 2).gather(1, sign)
    codes = 2 * sign + large.long()
    limit = torch.finfo(torch.bfloat16).max
    codebook = _means(values, codes, 4).clamp(-limit, limit).to(torch.bfloat16)
    return torch.cat([codebook.view(torch.uint8), _pack_indices(indices, part), _pack_codes(codes)], dim=1)


def _largest(sizes: Tensor, kept: int) -> Tensor:
    """Ascending indices of the `kept` largest of every row; of equals, the first ones."""
    least = sizes.topk(kept, dim=1, sorted=True).values[:, -1:]
    above, equal = sizes > least, sizes == least
    chosen = above | (equal & (equal.cumsum(dim=1) <= kept - above.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(sizes.shape[0], kept)


def _means(values: Tensor, bins: Tensor, number: int) -> Tensor:
    """fp64 [chunks, number], 0 for an empty bin. scatter_add_ along a row adds one value after the other."""
    sums = values.new_zeros(values.shape[0], number).scatter_add_(1, bins, values)
    counts = torch.zeros_like(sums).scatter_add_(1, bins, torch.ones_like(values))
    return sums / counts.clamp(min=1)


def _pack_indices(indices: Tensor, part: _Part) -> Tensor:
    first, second = torch.nn.functional.pad(indices, (0, part.kept % 2)).view(len(indices), -1, 2).unbind(dim=2)
    triples = torch.stack([first & 255, (first >> 8) | ((second & 15) << 4), second >> 4], dim=2)
    return triples.to(torch.uint8).flatten(1)[:, : part.codes_at - _CODEBOOK_BYTES]


def _pack_codes(codes: Tensor) -> Tensor:
    fours = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4)).view(codes.shape[0], -1, 4)
    return (fours << torch.tensor([0, 2, 4, 6])).sum(dim=2).to(torch.uint8)


def _entries(what: str, payload: Tensor, numel: int, k: int, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Per part of a payload, the places of what it holds and the values there. Raises ProtocolError."""
    expected = payload_bytes(numel, k, chunk)
    if payload.dtype != torch.uint8 or payload.dim() != 1 or payload.numel() != expected:
        raise ProtocolError(
            f"{what}: {numel} values take {expected} flat bytes, not {payload.dtype} of shape {tuple(payload.shape)}"
        )
    for part in _parts(numel, k, chunk):
        rows = payload[part.offset : part.offset + part.chunks * part.chunk_bytes].view(part.chunks, -1)
        places, values = _decode_rows(rows, part, f"{what}, chunk", part.start // chunk)
        starts = part.start + part.length * torch.arange(part.chunks).unsqueeze(1)
        yield (places + starts).flatten(), values.flatten()


def _decode_rows(rows: Tensor, part: _Part, what: str, first: int) -> tuple[Tensor, Tensor]:
    """uint8 [chunks, chunk_bytes] -> indices within the chunk and fp32 values, both [chunks, kept]."""
    head, packed, coded = rows.tensor_split([_CODEBOOK_BYTES, part.codes_at], dim=1)
    codebook = head.clone(memory_format=torch.contiguous_format).view(torch.bfloat16).float()
    _refuse(~torch.isfinite(codebook), what, first, "a value of the codebook is not finite")
    _refuse(codebook * torch.tensor([1, 1, -1, -1]) < 0, what, first, "a value of the codebook has the wrong sign")
    triples = torch.nn.functional.pad(packed.long(), (0, -packed.shape[1] % 3)).view(part.chunks, -1, 3)
    low, middle, high = triples.unbind(dim=2)
    indices = torch.stack([low | ((middle & 15) << 8), (middle >> 4) | (high << 4)], dim=2).flatten(1)
    _refuse(indices[:, part.kept :] != 0, what, first, "bits beyond the last index are set")
    indices = indices[:, : part.kept]
    _refuse(indices[:, 1:] <= indices[:, :-1], what, first, "its indices do not increase")
    _refuse(indices[:, -1:] >= part.length, what, first, f"an index is beyond its {part.length} values")

    codes = ((coded.long().unsqueeze(2) >> torch.tensor([0, 2, 4, 6])) & 3).flatten(1)
    _refuse(codes[:, part.kept :] != 0, what, first, "bits beyond the last code are set")
    return indices, codebook.gather(1, codes[:, : part.kept])


def _refuse(wrong: Tensor, what: str, first: int, why: str) -> None:
    """`wrong`: bool, a chunk a row."""
    if wrong.any():
        raise ProtocolError(f"{what} {first + int(wrong.nonzero()[0, 0])}: {why}")
