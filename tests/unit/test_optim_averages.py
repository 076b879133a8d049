"""Weighted means and the radial-directional average: identities, and what must stay zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pccl.errors import ArgumentError

torch = pytest.importorskip("torch")

from pccl.optim.averages import directions, norms, radial, recommended, weighted_mean  # noqa: E402

SLICES = [(0, 7), (7, 10), (10, 30)]
INF, NAN = float("inf"), float("nan")


def normal(numel: int, seed: int) -> Any:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


def averaged(vectors: list[Any], weights: list[float], slices: list[tuple[int, int]] = SLICES) -> Any:
    """As a round does it."""
    summed = torch.zeros_like(vectors[0])
    for vector, weight in zip(vectors, weights, strict=True):
        summed += directions(vector, slices) * weight
    return radial(summed, slices, [norms(vector, slices) for vector in vectors], weights)


def test_the_mean_divides_by_the_weights() -> None:
    vectors, weights = [normal(9, seed) for seed in range(3)], [1.0, 0.0, 3.0]
    summed = sum(vector * weight for vector, weight in zip(vectors, weights, strict=True))
    assert weighted_mean(summed, 4.0) is summed
    assert torch.allclose(summed, (vectors[0] + 3 * vectors[2]) / 4)


def test_the_mean_is_a_true_division() -> None:
    """Not a product with the reciprocal, which depends on who computes it."""
    vector = normal(1001, 1)
    assert torch.equal(weighted_mean(vector * 4, 4.0), vector)
    assert weighted_mean(vector.clone(), 3.0).tolist() == (vector.numpy() / np.float32(3)).tolist()


def test_no_weight_at_all_is_no_update() -> None:
    assert torch.equal(weighted_mean(torch.zeros(4), 0.0), torch.zeros(4))
    assert torch.equal(averaged([normal(30, 1), normal(30, 2)], [0.0, 0.0]), torch.zeros(30))


@pytest.mark.parametrize("weight", [-1.0, INF, NAN])
def test_a_wrong_weight_is_named(weight: float) -> None:
    with pytest.raises(ArgumentError, match="total weight"):
        weighted_mean(torch.ones(2), weight)
    with pytest.raises(ArgumentError, match="weight of peer 1"):
        radial(torch.ones(30), SLICES, [[1.0] * 3] * 2, [1.0, weight])
    with pytest.raises(ArgumentError, match="a length of peer 0"):
        radial(torch.ones(30), SLICES, [[1.0, weight, 1.0], [1.0] * 3], [1.0, 1.0])


def test_headers_that_do_not_fit_are_named() -> None:
    summed = torch.ones(30)
    with pytest.raises(ArgumentError, match="2 weights need the lengths of as many peers, not of 1"):
        radial(summed, SLICES, [[1.0] * 3], [1.0, 1.0])
    with pytest.raises(ArgumentError, match="peer 1 must tell 3 lengths, not 2"):
        radial(summed, SLICES, [[1.0] * 3, [1.0] * 2], [1.0, 1.0])
    assert torch.equal(summed, torch.ones(30))


@pytest.mark.parametrize("numel", [0, 1, 2, 3, 1000, 65_535, 65_536, 65_537, 200_003])
def test_the_norm_is_that_of_torch(numel: int) -> None:
    flat = normal(numel + 5, 3)
    assert norms(flat, [(5, numel + 5)])[0] == pytest.approx(flat[5:].double().norm().item(), rel=1e-12)


def test_the_norm_does_not_depend_on_the_number_of_threads() -> None:
    flat, threads = normal(300_000, 4), torch.get_num_threads()
    found = set()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.add(norms(flat, [(0, 300_000)])[0])
    torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1.0, 1e30])
def test_directions_have_length_one_at_every_scale(scale: float) -> None:
    flat = torch.ones(30) * scale
    before = flat.clone()
    assert norms(directions(flat, SLICES), SLICES) == pytest.approx([1.0, 1.0, 1.0], rel=1e-6)
    assert torch.equal(flat, before)


def test_the_average_of_equal_vectors_is_their_mean() -> None:
    vector = normal(30, 5)
    assert torch.allclose(averaged([vector] * 5, [1.0] * 5), vector, rtol=1e-6)
    assert torch.allclose(averaged([vector] * 3, [1.0, 0.0, 2.5]), vector, rtol=1e-6)
    assert torch.allclose(averaged([vector], [0.25]), vector, rtol=1e-6)


def test_orthogonal_vectors_of_equal_length_keep_it() -> None:
    one, other = torch.tensor([3.0, 0.0, 4.0, 0.0]), torch.tensor([0.0, 5.0, 0.0, 0.0])
    mean = averaged([one, other], [1.0, 1.0], [(0, 4)])
    assert mean.norm().item() == pytest.approx(5.0, rel=1e-6)
    assert torch.allclose(mean, (one + other) / math.sqrt(2))


def test_the_length_is_the_weighted_mean_of_the_lengths() -> None:
    vectors, weights = [normal(30, seed) * (seed + 1) for seed in range(4)], [1.0, 0.0, 2.0, 0.5]
    mean = averaged(vectors, weights)
    for first, end in SLICES:
        lengths = [vector[first:end].norm().item() for vector in vectors]
        expected = sum(w * n for w, n in zip(weights, lengths, strict=True)) / sum(weights)
        assert mean[first:end].norm().item() == pytest.approx(expected, rel=1e-5)
        direction = sum(w * v[first:end] / n for w, v, n in zip(weights, vectors, lengths, strict=True))
        assert torch.allclose(mean[first:end], expected * direction / direction.norm(), rtol=1e-4, atol=1e-6)


def test_zero_tensors_stay_zero() -> None:
    vectors = [normal(30, seed) for seed in range(3)]
    for vector in vectors:
        vector[7:10] = 0.0
    assert torch.equal(directions(vectors[0], SLICES)[7:10], torch.zeros(3))
    mean = averaged(vectors, [1.0, 2.0, 3.0])
    assert torch.equal(mean[7:10], torch.zeros(3))
    assert mean[:7].norm() > 0.1


def test_one_zero_tensor_shortens_and_does_not_turn() -> None:
    vector = normal(30, 1)
    assert torch.allclose(averaged([vector, torch.zeros(30)], [1.0, 1.0]), vector / 2, rtol=1e-6)


def test_directions_that_cancel_up_to_rounding_move_nothing() -> None:
    one, other = normal(30, 1), normal(30, 2)
    units = [directions(v, [(0, 30)]) for v in (one, other)]
    assert torch.equal(averaged([units[0], -units[0]], [1.0, 1.0], [(0, 30)]), torch.zeros(30))
    third = -(units[0] + units[1])
    weights = [1.0, 1.0, third.norm().item()]
    left = sum(w * directions(v, [(0, 30)]) for w, v in zip(weights, [*units, third], strict=True))
    assert 0 < left.norm() < 1e-6
    assert torch.equal(averaged([*units, third], weights, [(0, 30)]), torch.zeros(30))


def test_what_is_in_no_slice_is_a_plain_mean() -> None:
    vectors, weights = [normal(30, seed) for seed in range(2)], [1.0, 3.0]
    mean = averaged(vectors, weights, [(0, 7), (10, 30)])
    assert torch.allclose(mean[7:10], (vectors[0][7:10] + 3 * vectors[1][7:10]) / 4)


@pytest.mark.parametrize(("peers", "rate"), [(1, 0.6), (2, 0.6), (4, 0.7), (8, 0.9), (9, 0.9), (1000, 0.9)])
def test_the_recommended_rates_are_those_of_the_paper(peers: int, rate: float) -> None:
    assert recommended(peers, 100).outer_lr == pytest.approx(rate)
    assert recommended(peers, 100).momentum == 0.9
    assert recommended(peers, 100, overlap=True).outer_lr == 0.4


def test_the_recommended_rate_grows_with_the_peers() -> None:
    rates = [recommended(peers, 100).outer_lr for peers in range(2, 9)]
    assert rates == sorted(set(rates))


@pytest.mark.parametrize(("peers", "every", "what"), [(0, 1, "peers must"), (1, 0, "every must")])
def test_nothing_is_recommended_for_nothing(peers: int, every: int, what: str) -> None:
    with pytest.raises(ArgumentError, match=what):
        recommended(peers, every)
