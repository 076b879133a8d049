"""The stability bound against an eigenvalue and against chance, the pairing, and the sign of the update."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.errors import ArgumentError

torch = pytest.importorskip("torch")

from pccl.optim.gossip_math import check_stable, groups, partner, stability_bound, update  # noqa: E402

INF, NAN = float("inf"), float("nan")


def ids(number: int) -> list[bytes]:
    return [bytes([i]) * 16 for i in range(number)]


def contraction(alpha: float, gamma: float, n: int) -> float:
    """Factor per round of the spread: the recursion of E|φ|², E φ·m, E |m|² about the mean."""
    kappa = (n - 1) / n
    momentum = np.array([gamma**2 * kappa, -2 * alpha * gamma * kappa, alpha**2])
    cross = np.array([-gamma * kappa, alpha, 0.0]) + momentum
    spread = np.array([1 - 2 * gamma * kappa, 2 * alpha, 0.0]) + momentum
    return float(max(abs(np.linalg.eigvals(np.array([spread, cross, momentum])))))


# -- stability -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "alpha", "bound", "factor", "best", "at_best"),
    [
        (2, 0.3, 1.82, 0.55, 0.58, 0.55),
        (2, 0.5, 1.50, 0.70, 0.30, 0.63),
        (2, 0.7, 1.02, 0.89, 0.10, 0.75),
        (2, 0.9, 0.38, 1.10, 0.02, 0.91),
        (4, 0.9, 0.69, 1.00, 0.02, 0.90),
    ],
)
def test_the_bound_is_that_of_the_table(
    n: int, alpha: float, bound: float, factor: float, best: float, at_best: float
) -> None:
    assert stability_bound(alpha, n) == pytest.approx(bound, abs=0.005)
    assert contraction(alpha, 0.7, n) == pytest.approx(factor, abs=0.006)
    assert contraction(alpha, best, n) == pytest.approx(at_best, abs=0.011)


@settings(max_examples=60)
@given(st.floats(0, 0.99), st.integers(2, 64))
def test_the_spread_shrinks_below_the_bound_and_only_there(alpha: float, n: int) -> None:
    bound = stability_bound(alpha, n)
    assert contraction(alpha, bound * 0.98, n) < 1 < contraction(alpha, bound * 1.02, n)


def spread_after(alpha: float, gamma: float, rounds: int) -> float:
    """Of 64 scalar problems with 64 replicas each that only meet, by the pairing and the update of the library."""
    peers = ids(64)
    phi = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    momentum, nothing, before = torch.zeros(64, 64), torch.zeros(64, 64), phi.std(dim=0).norm()
    for step in range(rounds):
        pairs = torch.tensor([[member[0] for member in pair] for pair in groups(peers, 1, step)])
        mean = torch.empty(64, 64)
        mean[pairs] = phi[pairs].mean(dim=1, keepdim=True).expand(-1, 2, -1)
        update(phi, momentum, nothing, mean, alpha, 0.7, gamma)
    return float(phi.std(dim=0).norm() / before)


@pytest.mark.parametrize(
    ("alpha", "gamma", "rounds", "least", "most"),
    [(0.9, 1.0, 30, 20, 2000), (0.9, 0.3, 100, 0, 0.3), (0.5, 0.7, 20, 0, 0.01)],
)
def test_by_chance_high_momentum_diverges_above_the_bound_and_shrinks_below(
    alpha: float, gamma: float, rounds: int, least: float, most: float
) -> None:
    """α = 0.9, γ = 1 keeps to the bound that the paper prints. The recursion is of squares, hence the square."""
    assert least < contraction(alpha, gamma, 2) ** rounds < most
    assert least < spread_after(alpha, gamma, rounds) ** 2 < most


@pytest.mark.parametrize(("alpha", "gamma", "n"), [(0.5, 0.7, 2), (0.9, 0.3, 2), (0.9, 0.6, 4), (0.0, 1.9, 2)])
def test_stable_settings_pass(alpha: float, gamma: float, n: int) -> None:
    check_stable(alpha, gamma, n)


@pytest.mark.parametrize(
    ("alpha", "gamma", "n", "culprit"),
    [
        (0.9, 1.0, 2, r"gamma=1\.0 with alpha=0\.9 .* groups of 2 .* below 0\.38"),
        (0.9, 0.7, 4, r"groups of 4 .* below 0\.69"),
        (0.0, 2.0, 2, "below 2"),
        (0.5, 0.0, 2, r"gamma=0\.0 .* above 0"),
        (0.5, -0.1, 2, r"gamma=-0\.1"),
        (0.5, NAN, 2, "gamma=nan"),
        (1.0, 0.1, 2, r"alpha must .* not 1\.0"),
        (-0.1, 0.1, 2, "alpha must"),
        (NAN, 0.1, 2, "alpha must"),
        (0.5, 0.1, 0, "1 peer at least, not 0"),
    ],
)
def test_unstable_settings_are_named(alpha: float, gamma: float, n: int, culprit: str) -> None:
    with pytest.raises(ArgumentError, match=culprit):
        check_stable(alpha, gamma, n)


# -- who meets whom --------------------------------------------------------------------------------------------------

peer_lists = st.lists(st.binary(min_size=16, max_size=16), max_size=12, unique=True)
numbers = st.integers(0, 2**64 - 1)


@settings(max_examples=60)
@given(peer_lists, numbers, numbers, st.integers(1, 5), st.randoms())
def test_all_peers_draw_the_same_groups(peers: list[bytes], epoch: int, step: int, n: int, random: Any) -> None:
    drawn = groups(peers, epoch, step, n)
    assert sorted(peer for group in drawn for peer in group) == sorted(peers)
    assert [len(group) for group in drawn[:-1]] == [n] * (len(drawn) - 1)
    assert all(0 < len(group) <= n and list(group) == sorted(group) for group in drawn)
    random.shuffle(peers)
    assert groups(peers, epoch, step, n) == drawn


@settings(max_examples=60)
@given(peer_lists, numbers, numbers)
def test_partners_are_each_others(peers: list[bytes], epoch: int, step: int) -> None:
    alone = 0
    for peer in peers:
        other = partner(peers, epoch, step, peer)
        alone += other is None
        assert other is None or (other != peer and partner(peers, epoch, step, other) == peer)
    assert alone == len(peers) % 2


def test_the_groups_never_change_between_versions() -> None:
    """Peers of different builds meet: what follows may not change without a new version of the wire."""
    assert [[group[0][0], group[-1][0]] for group in groups(ids(7), 3, 11)] == [[5, 6], [3, 4], [0, 1], [2, 2]]


def test_every_pair_is_as_likely() -> None:
    """6 peers, 3000 rounds: each of 15 pairs is expected 600 times; six standard deviations are 130."""
    met = Counter(pair for step in range(3000) for pair in groups(ids(6), 1, step))
    assert len(met) == 15
    assert all(abs(times - 600) < 130 for times in met.values())


def test_epoch_and_step_both_matter() -> None:
    drawn = {tuple(groups(ids(30), epoch, step)) for epoch in range(4) for step in range(4)}
    assert len(drawn) == 16


def test_wrong_groups_are_named() -> None:
    with pytest.raises(ArgumentError, match="peer 61 is named twice"):
        groups([b"a", b"b", b"a"], 0, 0)
    with pytest.raises(ArgumentError, match="1 peer at least, not 0"):
        groups(ids(3), 0, 0, 0)
    with pytest.raises(ArgumentError, match=r"epoch must .* not -1"):
        groups(ids(3), -1, 0)
    with pytest.raises(ArgumentError, match="step must"):
        groups(ids(3), 0, 1 << 64)
    with pytest.raises(ArgumentError, match="peer 7a is not among the 3 peers of epoch 5"):
        partner(ids(3), 5, 0, b"z")
    assert groups([], 0, 0) == []


# -- the update ------------------------------------------------------------------------------------------------------


def test_the_update_is_the_equation() -> None:
    phi, momentum = torch.tensor([1.0, 2.0]), torch.tensor([4.0, -4.0])
    update(phi, momentum, torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]), 0.5, 0.25, 0.125)
    assert momentum.tolist() == [2.5, -2.25]
    assert phi.tolist() == [3.5, -0.25]


def test_the_sign_goes_towards_what_was_learned() -> None:
    """β = 1 without momentum in a group that agrees: φ becomes the mean of θ."""
    phi, thetas = torch.tensor([1.0, 1.0]), torch.tensor([[0.0, 2.0], [1.0, 4.0]])
    update(phi, torch.zeros(2), (thetas - phi).mean(0), phi.clone(), 0.0, 1.0, 0.5)
    assert torch.equal(phi, thetas.mean(0))


def test_a_group_of_all_is_heavy_ball_whatever_gamma() -> None:
    theta, velocity = torch.zeros(5), torch.zeros(5)
    phis, momenta = [torch.zeros(5) for _ in range(3)], [torch.zeros(5) for _ in range(3)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        deltas = torch.randn(3, 5, generator=generator)
        velocity = 0.5 * velocity - deltas.mean(0)  # of outer gradients, old minus new
        theta = theta - 0.7 * velocity
        mean_phi = torch.stack(phis).mean(0)
        for phi, momentum, gamma in zip(phis, momenta, (0.1, 0.5, 0.9), strict=True):
            update(phi, momentum, deltas.mean(0), mean_phi, 0.5, 0.7, gamma)
    assert theta.norm() > 1
    assert all(torch.allclose(phi, theta, atol=1e-5) for phi in phis)


def test_wrong_tensors_are_named_and_nothing_changes() -> None:
    phi, momentum = torch.ones(3), torch.ones(3)
    for at, what in ((1, "momentum"), (2, "mean_delta"), (3, "mean_phi")):
        for wrong in (torch.ones(4), torch.ones(3, dtype=torch.float64)):
            tensors = [phi, momentum, torch.ones(3), torch.ones(3)]
            tensors[at] = wrong
            with pytest.raises(ArgumentError, match=what):
                update(*tensors, 0.5, 0.5, 0.5)
    assert torch.equal(phi, torch.ones(3))
    assert torch.equal(momentum, torch.ones(3))
