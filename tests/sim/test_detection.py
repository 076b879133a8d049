"""How soon a crash is noticed: at once, whoever of the two has to dial, by the refusal of the dead process's port."""

from __future__ import annotations

import numpy as np
import pytest

from pccl._native import SimPath
from pccl.testing import Cluster, Faults, Options, SimPeer
from pccl.testing.clock import MILLISECOND


async def program(peer: SimPeer) -> None:
    while peer.boundary < 40:
        await peer.all_reduce(np.ones(100, "i8"))
        await peer.advance()


@pytest.mark.parametrize(("peers", "victim"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_a_crash_is_noticed_after_a_round_trip(peers: int, victim: int) -> None:
    """One delay for the end of the streams, two for the refused dial, one to the coordinator."""
    delay_ns = 5 * MILLISECOND
    cluster = Cluster(seed=victim, options=Options(path=SimPath(delay_ns)))
    crashed, lost = [], []

    def look(what: str, facts: tuple[object, ...]) -> None:
        if what == "crash":
            crashed.append(cluster.clock.now_ns)
        if what == "log" and facts[0] == "lost":
            lost.append(cluster.clock.now_ns)

    cluster.observers.append(look)
    faults = Faults(cluster)
    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    faults.when("epoch", victim, then=lambda: faults.crash(victim), after_s=0.05)
    assert cluster.run()
    assert not cluster.watch.finish()
    assert len(crashed) == len(lost) == 1
    assert lost[0] - crashed[0] <= 3 * delay_ns + 2 * MILLISECOND
    cluster.close()
