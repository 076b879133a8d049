"""Traces: what the readers take and refuse, by file and line; and that made-up ones have the published statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pccl.errors import ArgumentError
from pccl.kv.simulator.generate import STATISTICS, generated
from pccl.kv.simulator.trace import Request, Trace, read, read_azure, read_mooncake

GOOD = {"timestamp": 1000, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
HEADING = "TIMESTAMP,ContextTokens,GeneratedTokens"


def mooncake(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (path / "trace.jsonl").write_text("\n".join(lines) + "\n")
    return path / "trace.jsonl"


def azure(path: Path, *rows: str, heading: str = HEADING) -> Path:
    (path / "trace.csv").write_text("\n".join([heading, *rows]) + "\n")
    return path / "trace.csv"


def test_mooncake_is_read(tmp_path: Path) -> None:
    later = {**GOOD, "timestamp": 3500.5, "input_length": 512, "hash_ids": [1]}
    trace = read(mooncake(tmp_path, GOOD, "", later))
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 2.5005])
    assert trace.input_tokens.tolist() == [600, 512]
    assert trace.output_tokens.tolist() == [5, 5]
    assert (trace.blocks, trace.block_tokens, trace.skipped) == (((1, 2), (1,)), 512, 0)
    assert trace.duration_s == pytest.approx(2.5005)
    assert len(trace.first(1)) == 1


def test_azure_is_read_with_its_seven_digits(tmp_path: Path) -> None:
    trace = read(
        azure(
            tmp_path,
            "2023-11-16 18:17:03.9799600,4808,10",
            "2023-11-16 18:17:04.0319601,3180,8",
            "2023-11-16 18:17:05,1,1",
        )
    )
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.0520001, 1.02004], abs=1e-6)
    assert trace.input_tokens.tolist() == [4808, 3180, 1]
    assert trace.blocks == ((), (), ())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Expecting"),
        ("[1]", "not a JSON object"),
        ({"timestamp": 2000, "output_length": 1}, "'input_length' is missing"),
        ({**GOOD, "timestamp": 999}, "not sorted"),
        ({**GOOD, "timestamp": "2000"}, "timestamp must be a number"),
        ({**GOOD, "timestamp": float("nan")}, "timestamp must be a number"),
        ({**GOOD, "input_length": 0}, "input_length must be an integer of at least 1"),
        ({**GOOD, "input_length": 1.5}, "input_length must be an integer"),
        ({**GOOD, "output_length": -1}, "output_length must be an integer of at least 0"),
        ({**GOOD, "hash_ids": [1]}, "hash_ids has 1 entries, and input_length is 600"),
        ({**GOOD, "hash_ids": ["a", "b"]}, "hash_ids must be a list of integers"),
        ("[" * 100_000, ""),
        ('{"timestamp": ' + "9" * 5000 + "}", ""),
    ],
)
def test_a_malformed_line_is_named_or_skipped_and_counted(tmp_path: Path, line: Any, said: str) -> None:
    path = mooncake(tmp_path, GOOD, line, {**GOOD, "timestamp": 2000})
    with pytest.raises(ArgumentError, match=r"trace\.jsonl:2: .*") as refused:
        read_mooncake(path)
    assert said in str(refused.value)
    trace = read_mooncake(path, strict=False)
    assert (len(trace), trace.skipped) == (2, 1)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("2023-11-16 18:17:05.1,5", "2 columns instead of 3"),
        ("yesterday,5,5", "Invalid isoformat"),
        ("2023-11-16 18:17:05.1,many,5", "invalid literal"),
        ("2023-11-16 18:17:05.1,0,5", "ContextTokens must be an integer of at least 1"),
        ("2023-11-16 18:17:03.1,5,5", "not sorted"),
        ("2023-11-16 18:17:05.1x,5,5", "invalid literal"),
    ],
)
def test_so_is_a_row(tmp_path: Path, row: str, said: str) -> None:
    path = azure(tmp_path, "2023-11-16 18:17:04.1,5,5", row, "2023-11-16 18:17:06.1,5,5")
    with pytest.raises(ArgumentError, match=r"trace\.csv:3: .*") as refused:
        read_azure(path)
    assert said in str(refused.value)
    trace = read_azure(path, strict=False)
    assert (len(trace), trace.skipped) == (2, 1)


def test_files_that_are_no_trace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"trace\.csv:1: the heading"):
        read(azure(tmp_path, heading="a,b"))
    with pytest.raises(ArgumentError, match="the trace is empty"):
        read(azure(tmp_path))
    with pytest.raises(ArgumentError, match=r"the trace is empty \(1 malformed"):
        read(mooncake(tmp_path, "x"), strict=False)
    with pytest.raises(ArgumentError, match="No such file"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(ArgumentError, match=r"\.jsonl"):
        read(tmp_path / "trace.parquet")


def test_a_trace_is_sorted_and_not_empty() -> None:
    with pytest.raises(ValueError, match="arrival_s is not sorted"):
        Trace.of("t", [Request(1.0, 5, 5), Request(0.0, 5, 5)])
    with pytest.raises(ValueError, match="empty"):
        Trace.of("t", [])
    with pytest.raises(ValueError, match="input_tokens"):
        Trace.of("t", [Request(1.0, 0, 5)])


# -- made-up traces --------------------------------------------------------------------------------------------------


def hits_of(trace: Trace) -> np.ndarray[Any, Any]:
    """Blocks of each request that an infinite cache has."""
    seen: set[int] = set()
    found = []
    for blocks in trace.blocks:
        hit = next((place for place, block in enumerate(blocks) if block not in seen), len(blocks))
        assert not seen.intersection(blocks[hit:]), "a hash stands for its whole prefix"
        found.append(hit)
        seen.update(blocks)
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "requests", "rate", "quantiles"),
    [
        ("conversation", 12031, 3.4, (6900, 27400, 85400, 126000)),
        ("synthetic", 3993, 3.9, (11600, 38600, 66500, 191000)),
        ("azure-code", 8819, 2.6, (1500, 5200, 7400, 7437)),
        ("azure-conv", 19366, 5.5, (1000, 2700, 4100, 14050)),
    ],
)
def test_inputs_and_rate_are_as_published(name: str, requests: int, rate: float, quantiles: tuple[int, ...]) -> None:
    trace = generated(name)
    assert len(trace) == requests
    assert len(trace) / trace.duration_s == pytest.approx(rate, rel=0.02)
    assert np.percentile(trace.input_tokens, (50, 90, 99, 100)) == pytest.approx(quantiles, rel=0.02)


@pytest.mark.parametrize(
    ("name", "hits", "uncached", "above"),
    [
        ("conversation", 0.366, (2500, 19000, 71900), (0.43, 0.27, 0.10, 0.04)),
        ("synthetic", 0.640, (400, 19200, 49800), (0.22, 0.21, 0.10, 0.04)),
    ],
)
def test_so_are_prefixes(name: str, hits: float, uncached: tuple[int, ...], above: tuple[float, ...]) -> None:
    trace = generated(name)
    blocks = np.array([len(found) for found in trace.blocks])
    assert (blocks == -(-trace.input_tokens // 512)).all()
    cached = hits_of(trace)
    assert cached.sum() / blocks.sum() == pytest.approx(hits, abs=0.015)
    left = np.maximum(trace.input_tokens - 512 * cached, 1)
    assert np.percentile(left, (50, 90, 99)) == pytest.approx(uncached, rel=0.05, abs=128)
    assert [(left > n).mean() for n in (4000, 8000, 19400, 32000)] == pytest.approx(above, abs=0.012)


def test_a_conversation_comes_in_bursts() -> None:
    seconds = np.bincount(generated("conversation").arrival_s.astype(int))
    assert 14 <= np.percentile(seconds, 99) <= 20
    assert 22 <= seconds.max() <= 40


@pytest.mark.parametrize("name", STATISTICS)
def test_a_seed_makes_one_trace(name: str) -> None:
    one, same, other = generated(name, 3, 500), generated(name, 3, 500), generated(name, 4, 500)
    for field in ("arrival_s", "input_tokens", "output_tokens"):
        assert (getattr(one, field) == getattr(same, field)).all()
        assert (getattr(one, field) != getattr(other, field)).any()
    assert one.blocks == same.blocks
    assert len(one) == 500


def test_names_and_numbers_are_checked() -> None:
    with pytest.raises(ArgumentError, match="conversation, synthetic"):
        generated("toolagent")
    with pytest.raises(ArgumentError, match="seed"):
        generated("synthetic", -1)
    with pytest.raises(ArgumentError, match="requests"):
        generated("synthetic", requests=0)
