"""Four real peers learn the Markov task: DiLoCo, and Streaming DiLoCo with e3m0 while one leaves and one joins.

One seed of stress/optim/convergence.py, which has all modes. Losses are compared with those of data parallel and of a
lone worker on the same batches, from both sides; after every round Theta and outer state have one CRC on all peers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("torch", reason="torch is not installed")
from stress.optim import markov  # noqa: E402
from stress.optim.convergence import LONE_GAP, PARALLEL_LOSS, ROWS, Bench, Score, missed  # noqa: E402
from stress.optim.crew import Crew, Told, disagreements  # noqa: E402
from stress.optim.peer import Job  # noqa: E402

SEED = 0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(forked: str) -> Iterator[Bench]:
    with Crew((sys.executable, forked)) as crew:
        yield Bench(crew, watch_every=200)


def score(bench: Bench, name: str) -> Score:
    scored = Score(next(row for row in ROWS if row.name == name))
    bench.add(scored, SEED)
    return scored


def test_the_task_is_that_of_the_reference() -> None:
    assert markov.entropy_rate() == pytest.approx(1.980, abs=0.0005)
    assert sum(parameter.numel() for parameter in markov.Gpt(0).parameters()) == 29_856


def test_data_parallel_learns_and_beats_a_lone_worker(bench: Bench) -> None:
    together, alone = bench.parallel(4, SEED), bench.lone(SEED)
    assert bench.wrong == []
    assert PARALLEL_LOSS[0] <= together <= PARALLEL_LOSS[1]
    assert LONE_GAP[0] <= 100 * (alone / together - 1) <= LONE_GAP[1]
    steps, sent, losses = zip(*bench.parallels[4, SEED].watched, strict=True)
    every_step = 4 * 29_856 * 2 * 3 // 4  # bytes that each of four sends
    assert (steps, sent) == ((200, 400), (200 * every_step, 400 * every_step))
    assert losses[0] > losses[1] == together


@pytest.mark.parametrize("name", ["diloco", "streaming-churn"])
def test_a_mode_learns_nearly_as_well_and_replicas_stay_equal(bench: Bench, name: str) -> None:
    scored = score(bench, name)
    assert missed(scored, {}) == []
    assert 0 < scored.gap < scored.lone_gaps[0]


def test_a_digest_that_differs_is_seen() -> None:
    """The check of the checks: peers that disagree do not pass."""
    job = Job("diloco", 0, 0, 8)
    line = {"round": [0, 0], "peers": 2, "digest": "00000000"}
    end = {"loss": 2.0}
    same = [Told(job, [dict(line)], end=end), Told(job, [dict(line)], end=end)]
    assert disagreements(same) == []
    other = [same[0], Told(job, [line | {"digest": "00000001"}], end=end)]
    assert "digests" in disagreements(other)[0]
    assert "told by" in disagreements([same[0], Told(job, [], end=end)])[0]
    assert disagreements([same[0], Told(job, [], end={"left": 5})], changes=1) == []
    assert "losses" in disagreements([same[0], Told(job, [dict(line)], end={"loss": 2.1})])[0]
