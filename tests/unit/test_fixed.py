"""What an operator fixes about plans: it is done, it is said, and nonsense is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from pccl.cli import main
from pccl.coordinator.cost import Measurements
from pccl.coordinator.fixed import FREE, Fixed, fixed_from
from pccl.coordinator.plan import FEW_MAX, plan, predict
from pccl.coordinator.server import Coordinator
from pccl.coordinator.sizes import MESH_ALWAYS
from pccl.errors import ArgumentError
from pccl.types import STREAMS_LIMIT, Algorithm, MemberInfo

RING, MESH, TWO_LEVEL = Algorithm.RING, Algorithm.MESH, Algorithm.TWO_LEVEL
MB = 1e6


def peer(number: int) -> bytes:
    return number.to_bytes(16, "big")


def far(n: int) -> list[MemberInfo]:
    return [MemberInfo(peer(k), 0, f"10.0.{k // 250}.{k % 250}:1", f"host{k}") for k in range(n)]


def measured(n: int, regions: int = 1) -> Measurements:
    pairs = [(a, b) for a in range(n) for b in range(n) if a != b]
    rtt = {(peer(a), peer(b)): 0.001 if a % regions == b % regions else 0.08 for a, b in pairs}
    return Measurements(rtt, dict.fromkeys(rtt, 50 * MB))


@pytest.mark.parametrize("algorithm", [RING, MESH, TWO_LEVEL])
@pytest.mark.parametrize("known", [None, measured(6, 2)])
def test_a_fixed_algorithm_serves_every_size(algorithm: Algorithm, known: Measurements | None) -> None:
    free, chosen = plan(far(6), known), plan(far(6), known, fixed=Fixed(algorithm=algorithm))
    wanted = RING if algorithm == TWO_LEVEL and known is None else algorithm
    assert chosen.large_algorithm == wanted and "the operator fixed" in chosen.reason
    assert chosen.mesh_bytes_max == (MESH_ALWAYS if wanted == MESH else 0)
    assert chosen.streams == free.streams and sorted(chosen.order) == sorted(free.order)
    if known is not None:
        assert chosen.predicted_s == pytest.approx(predict(chosen, far(6), known)) and "mesh" in chosen.reason
        assert chosen.predicted_s >= free.predicted_s


def test_what_cannot_be_is_done_otherwise_and_said() -> None:
    chosen = plan(far(4), measured(4), fixed=Fixed(algorithm=TWO_LEVEL))
    assert chosen.large_algorithm == RING and "there is one region" in chosen.reason
    pair = plan(far(2), measured(2), fixed=Fixed(algorithm=RING))
    assert pair.large_algorithm == MESH and "fixed the ring" in pair.reason
    dead = frozenset({(peer(0), peer(1))})
    for algorithm in (MESH, RING):
        around = plan(far(5), measured(5), dead, Fixed(algorithm=algorithm))
        assert around.large_algorithm == algorithm and around.detours, "a dead link takes no choice away"
    many = plan(far(FEW_MAX + 1), None, fixed=Fixed(algorithm=RING))
    assert many.large_algorithm == RING and many.streams == 1 and "fixed the ring" in many.reason


@pytest.mark.parametrize("known", [None, measured(4)])
@pytest.mark.parametrize("broken", [frozenset(), frozenset({(peer(0), peer(1))})])
def test_fixed_streams_are_those_of_every_link(known: Measurements | None, broken: frozenset[Any]) -> None:
    free = plan(far(4), known, broken)
    chosen = plan(far(4), known, broken, Fixed(streams=7))
    assert (chosen.streams, chosen.pair_streams) == (7, ()) and "fixed the streams" in chosen.reason
    assert (chosen.large_algorithm, chosen.order, chosen.detours) == (free.large_algorithm, free.order, free.detours)


@pytest.mark.parametrize(
    ("streams", "algorithm", "culprit"),
    [
        (0, "auto", "streams must be 1 to 64, not 0"),
        (65, "auto", "not 65"),
        ("4", "auto", "streams must be a whole number, not '4'"),
        (True, "auto", "not True"),
        (None, "tree", "algorithm must be one of 'auto', 'ring', 'mesh', 'two_level', not 'tree'"),
    ],
)
def test_nonsense_is_refused_by_name(streams: Any, algorithm: str, culprit: str) -> None:
    with pytest.raises(ArgumentError, match=culprit):
        fixed_from(streams, algorithm)
    with pytest.raises(ArgumentError, match=culprit):
        Coordinator(streams=streams, algorithm=algorithm)


def test_nothing_fixed_is_the_planner_s() -> None:
    assert fixed_from(None, "auto") == FREE
    assert fixed_from(STREAMS_LIMIT, "two_level") == Fixed(STREAMS_LIMIT, TWO_LEVEL)
    assert plan(far(4), measured(4), fixed=FREE) == plan(far(4), measured(4))


@pytest.mark.parametrize("option", [("--streams", "0"), ("--streams", "x"), ("--algorithm", "tree")])
def test_the_command_refuses_nonsense_before_it_listens(option: tuple[str, str]) -> None:
    result = CliRunner().invoke(main, ["coordinator", *option])
    assert result.exit_code == 2 and option[0] in result.output
