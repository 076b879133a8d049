"""Figures of paths: a matrix that is a mapping; who is gone leaves a slot for others; what is old is not there."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.coordinator.figures import SLOTS_MIN, AgedFigures, Figures

A, B, C, D = (bytes([number]) * 16 for number in range(1, 5))


def test_a_mapping_and_its_matrix() -> None:
    known = {(A, B): 1.0, (B, A): 2.0, (A, C): 0.0}
    figures = Figures.of(known)
    assert dict(figures) == known and len(figures) == 3 and figures == known and Figures.of(figures) is figures
    assert (A, C) in figures and (C, A) not in figures and (A, D) not in figures and (D, D) not in figures
    assert figures.get((C, A)) is None
    with pytest.raises(KeyError):
        figures[C, A]
    matrix = figures.matrix([C, A, D])
    assert matrix[1, 0] == 0.0 and np.count_nonzero(~np.isnan(matrix)) == 1
    assert not Figures.of({}) and np.isnan(Figures.of({}).matrix([A, B])).all()


def test_figures_grow_old_and_new() -> None:
    aged = AgedFigures(2)
    aged.put(1.0, A, [B, C], ([7.0, 8.0], [1, 0]))
    aged.put(5.0, A, [B], ([9.0], [nan]))
    aged.put(6.0, D, [], ([], []))
    values, others = aged.since(1.0)
    assert dict(values) == {(A, B): 9.0, (A, C): 8.0} and dict(others) == {(A, B): 1.0, (A, C): 0.0}
    old, none = aged.since(1.5)
    assert dict(old) == {(A, B): 9.0} and not none, "nothing new does not make a figure younger"
    aged.put(6.0, A, [B], ([10.0], [2]))
    assert dict(old) == {(A, B): 9.0}, "a copy"


def test_who_is_gone_leaves_nothing_behind() -> None:
    aged = AgedFigures(1)
    aged.put(1.0, A, [B, C], [[1.0, 2.0]])
    aged.put(1.0, B, [A], [[3.0]])
    aged.forget(A)
    aged.forget(D)
    assert not aged.since(0.0)[0]
    aged.put(2.0, D, [B], [[4.0]])
    assert dict(aged.since(0.0)[0]) == {(D, B): 4.0}


actions = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.booleans()), max_size=80)


@given(actions)
@settings(max_examples=60)
def test_it_is_what_a_dictionary_would_be(steps: list[tuple[int, int, bool]]) -> None:
    """Also with more peers than the first slots hold, and with slots used again."""
    assert SLOTS_MIN < 30
    aged, plain = AgedFigures(1), dict[tuple[bytes, bytes], float]()
    for now, (a, b, forget) in enumerate(steps):
        sender, other = bytes([a]) * 16, bytes([b]) * 16
        if forget:
            aged.forget(sender)
            plain = {path: value for path, value in plain.items() if sender not in path}
        else:
            aged.put(now, sender, [other], [[float(now)]])
            plain[sender, other] = float(now)
    (figures,) = aged.since(0.0)
    assert dict(figures) == plain
    peers = [bytes([k]) * 16 for k in range(31)]
    matrix = figures.matrix(peers)
    assert {(peers[a], peers[b]): matrix[a, b] for a, b in np.argwhere(~np.isnan(matrix))} == plain
