"""What the modes of pccl.optim send, by the counters of four real peers, against exact bounds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("torch", reason="torch is not installed")
from stress.optim import traffic  # noqa: E402

FP32_BYTES = 4
HEADER_BYTES = 16


@pytest.fixture(scope="module")
def each() -> traffic.Tally:
    return traffic.per_step(50)


@pytest.fixture(scope="module")
def one() -> traffic.Tally:
    return traffic.diloco(500, every=500)


def of_all_reduce(values: int, ops: int) -> int:
    """Payload of all peers over the mesh, which is the least there can be: each value goes to its owner and back."""
    return ops * 2 * (traffic.PEERS - 1) * values * FP32_BYTES


def test_an_all_reduce_sends_what_it_must(each: traffic.Tally) -> None:
    assert each.payload == of_all_reduce(traffic.SIZE, 50)


def test_diloco_sends_one_five_hundredth(each: traffic.Tally, one: traffic.Tally) -> None:
    assert each.payload * 10 == one.payload * 500
    assert one.headers == traffic.PEERS * (traffic.PEERS - 1) * HEADER_BYTES


def test_streaming_with_e3m0_sends_less_and_in_smaller_bursts(each: traffic.Tally, one: traffic.Tally) -> None:
    plain = traffic.diloco(100, every=50, mode="streaming", fragments=traffic.FRAGMENTS, overlap=1)
    assert plain.payload == of_all_reduce(traffic.SIZE // traffic.FRAGMENTS, plain.ops // traffic.PEERS)
    coded = traffic.diloco(100, every=50, mode="streaming", fragments=traffic.FRAGMENTS, overlap=1, codec="e3m0")
    assert coded.ops == plain.ops == traffic.PEERS * (traffic.FRAGMENTS + 1)  # the first fragment is sent once more
    findings = traffic.streamed(each, one, plain, coded)
    assert [finding for finding in findings if not finding.ok] == []


def test_sparse_sends_less_than_a_quarter_of_a_bit(one: traffic.Tally) -> None:
    sparse = traffic.diloco(20, every=10, mode="sparse")
    assert sparse.ops == 2 * traffic.PEERS
    assert sparse.payload == sparse.ops * (traffic.PEERS - 1) * 120 * traffic.SIZE // 4096
    assert [finding for finding in traffic.bits_of_sparse(sparse) if not finding.ok] == []
