"""Users' own programs on a simulated cluster: what docs/testing.md promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pccl.errors import Timeout
from pccl.testing import SCENARIOS, Cluster, Faults, Options, SimPeer, run_seed


@pytest.fixture
def cluster():
    world = Cluster(seed=1, options=Options())
    yield world
    world.close()


def test_a_loop_survives_a_crash(cluster: Cluster) -> None:
    sums: list[tuple[int, float]] = []

    async def program(peer: SimPeer) -> None:
        weights = np.ones(1000, "f4")
        while peer.boundary < 5:
            result = await peer.all_reduce(weights.copy())
            sums.append((result.world_size, float(result.tensor[0])))
            await peer.compute(0.01)
            await peer.advance()

    for _ in range(3):
        cluster.add(program)
    cluster.form_with(3)
    Faults(cluster).at(0.03, lambda: Faults(cluster).crash(1))
    assert cluster.run()
    assert not cluster.watch.finish()
    assert {size for size, _ in sums} == {2, 3}
    assert all(value == size for size, value in sums)


def test_errors_are_the_real_ones(cluster: Cluster) -> None:
    cluster.watch.overdue_expected = True
    errors: list[BaseException] = []

    async def program(peer: SimPeer) -> None:
        if peer.index == 0:
            try:
                await peer.barrier(timeout=0.5)
            except Timeout as error:
                errors.append(error)
        else:
            await peer.compute(2.0)

    for _ in range(2):
        cluster.add(program)
    cluster.form_with(2)
    assert cluster.run()
    assert not cluster.watch.finish()
    assert len(errors) == 1 and "not called by peer" in str(errors[0])


def test_a_bug_of_the_program_is_told(cluster: Cluster) -> None:
    async def program(peer: SimPeer) -> None:
        raise ZeroDivisionError("the user's own")

    cluster.add(program)
    assert cluster.run()
    assert any("ZeroDivisionError" in finding.detail for finding in cluster.watch.finish())


def test_a_join_is_a_growth(cluster: Cluster) -> None:
    sizes: list[int] = []

    async def program(peer: SimPeer) -> None:
        while peer.boundary < 20:
            sizes.append((await peer.all_reduce(np.ones(8, "i8"))).world_size)
            await peer.advance()

    cluster.add(program)
    cluster.add(program)
    cluster.form_with(2)
    cluster.add_later(0.01, program)
    assert cluster.run()
    assert not cluster.watch.finish()
    assert set(sizes) == {2, 3} and sizes == sorted(sizes)


def test_the_guide_is_true() -> None:
    guide = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", guide.read_text("utf-8"), re.DOTALL):
        exec(block, names)
    outcomes = [run_seed(seed, "two_at_once") for seed in range(5)]
    del SCENARIOS["two_at_once"]
    assert not any(outcome.broken for outcome in outcomes)
    assert any(outcome.marks for outcome in outcomes)
