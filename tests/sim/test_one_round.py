"""All-reduces of one round under the virtual clock: their time to the nanosecond, and that the mixture takes them."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest

from pccl._native import SimPath
from pccl.testing import Cluster, Faults, Options, SimPeer
from pccl.testing.simulate import draw_options, mix, settle

WAY_S = 0.040
OPTIONS = Options(
    eager_bytes=1 << 20,
    path=SimPath(delay_ns=40_000_000),
    segment_bytes=64 << 10,
    one_round_bytes_max=64 << 10,
    mesh_bytes_max=1 << 40,
    measure=False,  # filler on its way when an op begins takes time
)


def slowest(cluster: Cluster, peers: int, nbytes: int, algorithm: str) -> tuple[float, set[str]]:
    """Seconds of an all-reduce that all call at the same time, over links that are up, and by which algorithm."""
    found: list[float] = []

    async def program(peer: SimPeer) -> None:
        await peer.barrier()
        await peer.compute(2.0 - peer.now)
        found.append((await peer.all_reduce(np.ones(nbytes // 4, "f4"), algorithm=algorithm)).duration_s)

    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    assert cluster.run()
    assert not cluster.watch.finish()
    return max(found), {work.algorithm for work in cluster.watch.works if work.request.count}


@pytest.mark.parametrize("peers", [2, 4])
@pytest.mark.parametrize(
    ("nbytes", "asked", "taken", "ways"),
    [(1024, "auto", "one round", 2), (64 << 10, "auto", "one round", 2), (1024, "mesh", "mesh", 3),
     (68 << 10, "auto", "mesh", 3), (68 << 10, "one_round", "one round", 2)],
)  # fmt: skip
def test_one_way_less_than_the_mesh(peers: int, nbytes: int, asked: str, taken: str, ways: int) -> None:
    cluster = Cluster(seed=1, options=OPTIONS)
    try:
        seconds, algorithms = slowest(cluster, peers, nbytes, asked)
    finally:
        cluster.close()
    assert algorithms == {taken}
    assert seconds == pytest.approx(ways * WAY_S, abs=1e-6)


@pytest.mark.parametrize(("all_have_it", "expected"), [(True, (0, 85.0)), (False, (1, 21.0))])
def test_a_peer_that_dies_before_its_fin(all_have_it: bool, expected: tuple[int, float]) -> None:
    """If all survivors have its contribution the op is committed, else it starts again, from its inputs."""
    cluster = Cluster(seed=2, options=OPTIONS)
    faults = Faults(cluster)
    sums: list[tuple[int, float]] = []

    async def program(peer: SimPeer) -> None:
        await peer.barrier()
        await peer.compute(2.0 - peer.now)
        result = await peer.all_reduce(np.full(256, 4.0**peer.index, "f4"))
        sums.append((result.retries, float(result.tensor[0])))

    for _ in range(4):
        cluster.add(program)
    cluster.form_with(4)
    if not all_have_it:
        faults.at(1.9, lambda: faults.cut(3, 0, seconds=9.0))
    faults.at(2.0 + WAY_S / 2, lambda: faults.crash(3))
    try:
        assert cluster.run()
        assert not cluster.watch.finish()
    finally:
        cluster.close()
    assert sums == [expected] * 3


def test_the_mixture_takes_it() -> None:
    taken: Counter[str] = Counter()
    for seed in range(12):
        random = Random(f"{seed}:mix")
        cluster = Cluster(seed, draw_options(random))
        try:
            mix(cluster, Faults(cluster), random)
            settle(cluster)
            taken.update(work.algorithm for work in cluster.watch.works if work.status == 0)
        finally:
            cluster.close()
    assert min(taken[name] for name in ("one round", "mesh", "ring")) > 50
