"""Plans on random geographies: never slower than the plain ring, never faster than what is possible."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

pytest.importorskip("scipy", reason="SciPy is not installed")
from pccl.coordinator.cost import REFERENCE_BYTES
from stress.scale.bounds import bound_s, cut_seconds, delay_s, program_seconds
from stress.scale.geography import ACCESS_RTT_S, DETOUR, EARTH_KM, FIBRE_KM_PER_S, LAN_RTT_S, geography
from stress.scale.planning import rows

ROOT = Path(__file__).resolve().parents[2]


def test_a_geography_is_what_its_text_says() -> None:
    world = geography(200, 7)
    again = geography(200, 7)
    assert np.array_equal(world.rtt_s, again.rtt_s) and world.members == again.members
    assert not np.array_equal(world.rtt_s, geography(200, 8).rtt_s)
    far = ~world.lan
    antipodes = ACCESS_RTT_S + DETOUR * 2 * np.pi * EARTH_KM / FIBRE_KM_PER_S
    assert (world.rtt_s[far] >= ACCESS_RTT_S).all() and (world.rtt_s[far] <= antipodes).all()
    assert set(world.rtt_s[world.lan]) == {0.0, LAN_RTT_S} and np.array_equal(world.rtt_s, world.rtt_s.T)
    lines = np.minimum(world.up[:, None], world.down[None, :])
    assert (world.bytes_per_s <= lines)[far].all() and set(np.bincount(world.site)) <= set(range(1, 9))
    near, anywhere = (np.median(geography(300, 1, where).rtt_s) for where in ("cities", "sphere"))
    assert near < anywhere, "cities are not spread evenly"


@pytest.mark.parametrize("seed", range(4))
def test_the_program_fulfils_its_cuts(seed: int) -> None:
    for peers in (3, 5):
        world = geography(peers, seed)
        assert program_seconds(world) >= cut_seconds(world) * (1 - 1e-6)
        least, kind = bound_s(world, REFERENCE_BYTES)
        assert kind == "lp" and least == pytest.approx(program_seconds(world) * REFERENCE_BYTES + delay_s(world))


@pytest.mark.parametrize("where", ["cities", "sphere"])
def test_plans_are_between_the_ring_and_the_bound(where: str) -> None:
    found = list(rows([8, 16, 32, 80], [64 << 20, 1 << 20], 1, 1, where))
    assert len(found) == 4 * 2
    for row in found:
        assert row["bound_s"] * (1 - 1e-6) <= row["ours_s"] <= row["ring_s"], row
        assert row["blind_s"] <= row["ring_s"] and row["plan_ms"] > 0
        assert row["speedup"] == pytest.approx(row["ring_s"] / row["ours_s"]) and 0 < row["fraction"] <= 1


def test_the_command_prints_a_row_per_object() -> None:
    command = [sys.executable, "-m", "stress.scale_sim", "plan", "--peers", "8,12", "--sizes", "1MiB", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["peers"] for line in done.stdout.splitlines()] == [8, 12]
