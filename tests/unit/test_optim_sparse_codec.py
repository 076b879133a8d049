"""The sparse payload against a codec written with plain loops, what error feedback conserves, and hostile bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pccl.errors import ArgumentError, ProtocolError

torch = pytest.importorskip("torch")

from pccl.optim.sparse_codec import ErrorFeedback, accumulate, decode, encode, payload_bytes  # noqa: E402

SHAPES = [(4096, 64, 4096), (10_000, 64, 4096), (1, 64, 4096), (100, 7, 16), (53, 5, 10), (20, 9, 4), (12, 1, 5)]


def normal(numel: int, seed: int = 0) -> Any:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)) * 1e-4


def bf16(value: float) -> float:
    """Rounded to nearest, ties to even, from the bits."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return float(struct.unpack("<f", struct.pack("<I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[0])


def chunk_by_loops(values: list[float], kept: int) -> tuple[list[float], list[int], list[int]]:
    """(codebook, indices, codes) of a chunk, straight from the definition."""
    indices = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept])
    bins: list[list[float]] = [[], [], [], []]
    codes = []
    for i in indices:
        same = [abs(values[j]) for j in indices if (values[j] < 0) == (values[i] < 0)]
        codes.append(2 * (values[i] < 0) + (abs(values[i]) > sum(same) / len(same)))
        bins[codes[-1]].append(values[i])
    return [bf16(sum(entries) / len(entries)) if entries else 0.0 for entries in bins], indices, codes


def payload_by_loops(flat: Any, k: int, chunk: int) -> bytes:
    """Bits written one after the other, the lowest first."""
    data = b""
    for start in range(0, len(flat), chunk):
        values = flat[start : start + chunk].tolist()
        codebook, indices, codes = chunk_by_loops(values, -(-min(k, chunk) * len(values) // chunk))
        data += b"".join(struct.pack("<f", entry)[2:] for entry in codebook)
        for numbers, bits in ((indices, 12), (codes, 2)):
            word = sum(number << place * bits for place, number in enumerate(numbers))
            data += word.to_bytes(-(-len(numbers) * bits // 8), "little")
    return data


@pytest.mark.parametrize("shape", SHAPES)
def test_the_payload_is_that_of_the_plain_loops(shape: tuple[int, int, int]) -> None:
    numel, k, chunk = shape
    flat = normal(numel)
    flat[::3] = flat[0]  # many equals
    before = flat.clone()
    payload = encode(flat, k, chunk)
    assert bytes(payload.tolist()) == payload_by_loops(flat, k, chunk)
    assert payload.numel() == payload_bytes(numel, k, chunk)
    assert torch.equal(flat, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_decoded_stands_where_it_was(shape: tuple[int, int, int]) -> None:
    numel, k, chunk = shape
    flat = normal(numel, 1)
    decoded = decode(encode(flat, k, chunk), numel, k, chunk)
    for start in range(0, numel, chunk):
        values = flat[start : start + chunk].tolist()
        expected = [0.0] * len(values)
        codebook, indices, codes = chunk_by_loops(values, -(-min(k, chunk) * len(values) // chunk))
        for i, code in zip(indices, codes, strict=True):
            expected[i] = codebook[code]
        assert decoded[start : start + chunk].tolist() == expected


def test_many_chunks_are_encoded_as_each_alone() -> None:
    flat = normal(2500 * 8 + 3, 2)  # more than are encoded at once
    parts = [encode(part, 2, 8) for part in flat.split(700 * 8)]
    assert torch.equal(encode(flat, 2, 8), torch.cat(parts))


@pytest.mark.parametrize("flat", [[0.0] * 40, [0.0, -3.0] + [0.0] * 38, [5.0] * 40, [-1.0, 1.0] * 20, [1e-40] * 40])
def test_chunks_with_too_little_in_them(flat: list[float]) -> None:
    payload = encode(torch.tensor(flat), 4, 10)
    assert bytes(payload.tolist()) == payload_by_loops(torch.tensor(flat), 4, 10)
    decoded = decode(payload, 40, 4, 10)
    kept = decoded != 0
    assert torch.allclose(decoded[kept], torch.tensor(flat)[kept], rtol=2**-8)


def test_everything_is_sent_where_k_is_above_the_chunk() -> None:
    flat = torch.tensor([1.0, -2.0, 4.0, -8.0, 1.0, 2.0, -1.0])
    assert torch.equal(decode(encode(flat, 9, 4), 7, 9, 4), flat)


@pytest.mark.parametrize("numel", [4096, 29_856, 214_464, 10**6 + 1, 10**9, 72 * 10**9])
def test_a_quarter_bit_per_parameter_at_most(numel: int) -> None:
    assert payload_bytes(numel) * 8 / numel <= 0.25
    assert payload_bytes(4096) == 120


@pytest.mark.parametrize("shape", SHAPES)
def test_what_was_decoded_is_coded_without_loss(shape: tuple[int, int, int]) -> None:
    numel, k, chunk = shape
    for seed in range(5):
        once = decode(encode(normal(numel, seed), k, chunk), numel, k, chunk)
        assert torch.equal(decode(encode(once, k, chunk), numel, k, chunk), once)


@pytest.mark.parametrize("scale", [1e-39, 1e-12, 1.0, 3.4e38])
def test_every_magnitude_of_fp32_can_be_sent(scale: float) -> None:
    flat = torch.tensor([0.1, -1.0, 1.0, 0.0, 0.25]) * scale
    decoded = decode(encode(flat, 3, 5), 5, 3, 5)
    assert torch.isfinite(decoded).all()
    assert decoded[1].item() == pytest.approx(-scale, rel=2**-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_and_changes_nothing(bad: float) -> None:
    flat = normal(30)
    feedback = ErrorFeedback(30, k=3, chunk=10)
    feedback.compress(flat)
    before = feedback.state.clone()
    flat[17] = bad
    with pytest.raises(ArgumentError, match="flat: value 17 of 30 is "):
        encode(flat, 3, 10)
    with pytest.raises(ArgumentError, match="value 17"):
        feedback.compress(flat)
    assert torch.equal(feedback.state, before)
    with pytest.raises(ArgumentError, match="state: value 17"):
        feedback.load(flat)


@pytest.mark.parametrize(("k", "chunk", "what"), [(0, 16, "k must"), (4, 0, "chunk must"), (4, 4097, "not 4097")])
def test_wrong_sizes_are_named(k: int, chunk: int, what: str) -> None:
    with pytest.raises(ArgumentError, match=what):
        encode(normal(8), k, chunk)
    with pytest.raises(ArgumentError, match=what):
        ErrorFeedback(8, 0.9, k, chunk)


def test_wrong_tensors_are_named() -> None:
    for flat in (torch.zeros(4, dtype=torch.float64), torch.zeros(2, 2)):
        with pytest.raises(ArgumentError, match="flat must be 4 float32 in a row"):
            encode(flat)
    with pytest.raises(ArgumentError, match=r"delta must be 5 float32 .* not torch\.float32 of shape \(4,\)"):
        ErrorFeedback(5).compress(torch.zeros(4))
    with pytest.raises(ArgumentError, match=r"beta .* not 1\.5"):
        ErrorFeedback(5, 1.5)
    with pytest.raises(ArgumentError, match="not -1"):
        payload_bytes(-1)


def test_strided_tensors_are_read_as_they_stand() -> None:
    flat = normal(60)[::2]
    assert torch.equal(encode(flat, 3, 8), encode(flat.contiguous(), 3, 8))
    payload = encode(flat, 3, 8).repeat_interleave(2)[::2]
    assert torch.equal(decode(payload, 30, 3, 8), decode(payload.contiguous(), 30, 3, 8))


# -- hostile payloads: 2 chunks of 8 and a tail of 4, keeping 3, 3 and 2; 14, 14 and 12 bytes -------------------------


def good() -> Any:
    return encode(torch.tensor([1.0, 9.0, -3.0, 5.0] * 5), 3, 8)


@pytest.mark.parametrize(
    ("at", "data", "why"),
    [
        (0, b"\x80\x7f", "chunk 0: .* not finite"),
        (16, b"\xc0\x7f", "chunk 1: .* not finite"),
        (2, b"\x80\xbf", "chunk 0: .* wrong sign"),
        (28 + 4, b"\x80\x3f", "chunk 2: .* wrong sign"),
        (8, bytes([5, 0x50, 0, 6, 0]), "chunk 0: its indices do not increase"),
        (14 + 8, bytes([5, 0x40, 0, 6, 0]), "chunk 1: its indices do not increase"),
        (8, bytes([1, 0x20, 0, 8, 0]), "chunk 0: an index is beyond its 8 values"),
        (14 + 8, bytes([1, 0x20, 0, 3, 8]), "chunk 1: an index is beyond"),
        (28 + 8, bytes([1, 0x40, 0]), "chunk 2: an index is beyond its 4 values"),
        (8, bytes([1, 0x20, 0, 3, 0x10]), "chunk 0: bits beyond the last index"),
        (13, b"\x40", "chunk 0: bits beyond the last code"),
        (28 + 11, b"\x10", "chunk 2: bits beyond the last code"),
    ],
)
def test_a_hostile_payload_is_named(at: int, data: bytes, why: str) -> None:
    payload = good()
    assert payload.numel() == 40
    payload[at : at + len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    with pytest.raises(ProtocolError, match="payload, " + why):
        decode(payload, 20, 3, 8)
    with pytest.raises(ProtocolError, match="payload 1, " + why):
        accumulate([good(), payload], [1.0, 0.0], 20, 3, 8)


def test_a_payload_of_another_size_or_type_is_named() -> None:
    for payload in (
        good()[:-1],
        torch.cat([good(), good()[:1]]),
        good()[:0],
        good().view(4, 10),
        good().to(torch.int8),
    ):
        with pytest.raises(ProtocolError, match="20 values take 40 flat bytes"):
            decode(payload, 20, 3, 8)


def test_any_bytes_are_decoded_or_refused() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        payload = good()
        places = torch.randint(0, 40, (3,), generator=generator)
        payload[places] = torch.randint(0, 256, (3,), generator=generator, dtype=torch.uint8)
        try:
            decoded = decode(payload, 20, 3, 8)
        except ProtocolError:
            continue
        assert torch.isfinite(decoded).all()
        assert int((decoded != 0).sum()) <= 8


# -- error feedback and sums -----------------------------------------------------------------------------------------


def test_nothing_is_lost_without_decay() -> None:
    numel, k, chunk = 1000, 4, 64
    feedback = ErrorFeedback(numel, 1.0, k, chunk)
    given, sent = torch.zeros(numel, dtype=torch.float64), torch.zeros(numel, dtype=torch.float64)
    for seed in range(40):
        delta = normal(numel, seed)
        given += delta
        sent += decode(feedback.compress(delta), numel, k, chunk)
    assert torch.allclose(sent + feedback.state, given, atol=1e-8, rtol=0)
    assert (sent != 0).sum() > 0.9 * numel  # what is small comes in the end


def test_what_is_kept_decays() -> None:
    """Σ sent decayed like the rest: after n rounds of Δ then 0, sent weighted by β^(rounds since) + e = β^n Δ."""
    feedback = ErrorFeedback(100, 0.5, 2, 20)
    delta = normal(100)
    account = delta.clone()
    for number in range(5):
        payload = feedback.compress(delta if number == 0 else torch.zeros(100))
        account = account * (0.5 if number else 1.0) - decode(payload, 100, 2, 20)
        assert torch.equal(feedback.state, account)


def test_the_first_payload_is_that_of_the_delta_alone() -> None:
    assert torch.equal(ErrorFeedback(50, 0.9, 2, 10).compress(normal(50)), encode(normal(50), 2, 10))


def test_what_is_given_back_is_sent_again() -> None:
    feedback = ErrorFeedback(50, 0.9, 2, 10)
    payload = feedback.compress(normal(50))
    feedback.give_back(payload)
    assert torch.allclose(feedback.state, normal(50), atol=1e-10, rtol=0)


def test_a_loaded_state_goes_on_the_same() -> None:
    one, other = ErrorFeedback(50, k=2, chunk=10), ErrorFeedback(50, k=2, chunk=10)
    one.compress(normal(50))
    other.load(one.state)
    for seed in range(3):
        assert torch.equal(one.compress(normal(50, seed)), other.compress(normal(50, seed)))
    assert torch.equal(one.state, other.state)


def test_the_sum_is_that_of_the_weighted_parts_in_order() -> None:
    payloads = [encode(normal(100, seed), 5, 30) for seed in range(4)]
    weights = [0.3, 0.0, 7.0, 1.1]
    expected = torch.zeros(100)
    for payload, weight in zip(payloads, weights, strict=True):
        expected = expected + decode(payload, 100, 5, 30) * torch.tensor(weight)
    assert torch.equal(accumulate(payloads, weights, 100, 5, 30), expected)
    assert torch.equal(accumulate([], [], 100, 5, 30), torch.zeros(100))


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ArgumentError, match="1 payloads need as many weights, not 2"):
        accumulate([good()], [1.0, 1.0], 20, 3, 8)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match="weight of payload 0"):
            accumulate([good()], [weight], 20, 3, 8)
