"""Priorities on a slow network, to the virtual nanosecond: what is urgent overtakes what is large."""

from __future__ import annotations

import numpy as np

from pccl._native import SimPath
from pccl.testing import Cluster, Options, SimPeer

MB_PER_S = 1_000_000
BULK_OPS = 4
BULK_BYTES = 16 << 20  # of each: 64 MiB in all
SEGMENT = 64 << 10
PATH = SimPath(delay_ns=10_000_000, bytes_per_s=12 * MB_PER_S)
OPTIONS = Options(path=PATH, segment_bytes=SEGMENT, mesh_bytes_max=1 << 40, eager_bytes=1 << 20, lease_s=60.0)


def seconds(nbytes: int, bulk: str | None, own: str) -> float:
    """How long an op of so many bytes takes between two peers, called while bulk of another priority is under way."""
    found: list[float] = []
    bulk_seconds: list[float] = []

    async def program(peer: SimPeer) -> None:
        large = [np.ones(BULK_BYTES // 4, "i4") for _ in range(BULK_OPS if bulk else 0)]
        works = [peer.all_reduce(array, priority=bulk or own, timeout=100.0) for array in large]
        await peer.compute(1.0)
        small = np.ones(nbytes // 4, "i4")
        found.append((await peer.all_reduce(small, priority=own, timeout=100.0)).duration_s)
        assert (small == 2).all()
        for work in works:
            bulk_seconds.append((await work).duration_s)
            assert (work.out == 2).all()
        await peer.leave()

    cluster = Cluster(seed=1, options=OPTIONS)
    try:
        for _ in range(2):
            cluster.add(program)
        cluster.form_with(2)
        assert cluster.run(200)
        assert not cluster.watch.finish()
    finally:
        cluster.close()
    assert all(took > max(found) for took in bulk_seconds), "the bulk must still be under way when the small one ends"
    return max(found)


def test_a_small_urgent_op_overtakes_64_mib_of_low_priority() -> None:
    """2 MiB alone take 0.2 s. Among equals they get a fifth of the link, and would need five times as long."""
    alone = seconds(2 << 20, None, "high")
    equal = seconds(2 << 20, "normal", "normal")
    ahead = seconds(2 << 20, "low", "high")
    assert 0.19 < alone < 0.25
    assert equal > 4 * alone
    assert ahead < 1.8 * alone, "it waits for what the streams hold already, and for one low segment in 16"


def test_one_kilobyte_waits_only_for_what_the_streams_hold() -> None:
    """Three ways (contribution, result, FIN) of 10 ms, each behind two full socket buffers of 256 KiB and a segment."""
    assert seconds(1 << 10, None, "high") < 0.031
    assert seconds(1 << 10, "low", "high") < 3 * (0.010 + 2 * (256 + 64 + 64) * 1024 / 12e6)
