"""The identities of the reference: what each mode must equal, to the bit where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from unit.replicas import Model, flat, gradients, replica, run, steps, theta

from pccl.errors import ArgumentError
from pccl.optim import Average, ClippedMomentum, DiLoCo, HeavyBall, Mixing, Nesterov


def trained(peers: int, number: int, every: int, **options: Any) -> list[tuple[Tensor, Tensor]]:
    """(theta, Theta) of every replica after a number of steps, what was in flight landed."""

    def body(comm: Any, place: int) -> tuple[Tensor, Tensor]:
        model, opt = replica(comm, every, **options)
        list(steps(model, opt, place, 0, number))
        opt.flush()
        return flat(model), theta(opt)

    return run(peers, body)


def by_hand(peers: int, number: int, every: int, outer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> Tensor:
    """DiLoCo in a few lines: the same inner steps, means taken with torch, an outer optimizer on a flat parameter."""
    models = [Model() for _ in range(peers)]
    inners = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    with torch.no_grad():
        parameter.copy_(flat(models[0]))
    for step in range(number):
        for place, (model, inner) in enumerate(zip(models, inners, strict=True)):
            gradients(model, 1000 * place + step)
            inner.step()
        if (step + 1) % every == 0:
            deltas = [parameter.detach() - flat(model) for model in models]
            total = deltas[0].clone()
            for delta in deltas[1:]:
                total += delta
            parameter.grad = total / peers
            outer.step()
            for model in models:
                torch.nn.utils.vector_to_parameters(parameter.detach().clone(), model.parameters())
    return parameter.detach().clone()


def vector() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros_like(flat(Model())))


@pytest.mark.parametrize("peers", [1, 2, 3, 5])
def test_diloco_is_torch_sgd_nesterov_on_the_mean_delta(peers: int) -> None:
    """20 rounds, to the bit."""
    parameter = vector()
    wanted = by_hand(peers, 60, 3, torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True), parameter)
    for model, outer in trained(peers, 60, 3):
        assert torch.equal(outer, wanted)
        assert torch.equal(model, wanted)


def test_one_replica_with_rate_1_and_no_momentum_goes_where_its_inner_steps_go() -> None:
    """The sign: a round changes nothing, but for rounding."""
    model, opt = replica(None, 4, outer=Average(1.0))
    alone = Model()
    inner = torch.optim.SGD(alone.parameters(), lr=0.1)
    for step in steps(model, opt, 0, 0, 4):
        gradients(alone, step)
        inner.step()
    torch.testing.assert_close(flat(model), flat(alone), rtol=1e-6, atol=1e-6)
    assert not torch.equal(flat(model), flat(Model()))


def test_local_sgd_is_the_mean_of_the_replicas() -> None:
    alone = []
    for place in range(3):
        model = Model()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            gradients(model, 1000 * place + step)
            inner.step()
        alone.append(flat(model))
    for model, _ in trained(3, 4, 4, mode="localsgd"):
        torch.testing.assert_close(model, torch.stack(alone).mean(0), rtol=1e-6, atol=1e-6)


def test_every_step_with_rate_1_is_data_parallel_sgd() -> None:
    model = Model()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(10):
        parts = []
        for place in range(4):
            gradients(model, 1000 * place + step)
            parts.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        for parameter, *grads in zip(model.parameters(), *parts, strict=True):
            parameter.grad = torch.stack(grads).mean(0)
        inner.step()
    for result, _ in trained(4, 10, 1, outer=Average(1.0)):
        torch.testing.assert_close(result, flat(model), rtol=1e-5, atol=1e-5)


def test_streaming_in_one_fragment_without_overlap_or_merge_is_diloco() -> None:
    outer = Nesterov(0.4, 0.9)
    plain = trained(3, 20, 4, outer=outer)
    stream = trained(3, 20, 4, mode="streaming", fragments=1, overlap=0, merge=0.0, outer=outer)
    assert all(
        torch.equal(a, b) for one, other in zip(plain, stream, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_merge_1_leaves_the_parameters_alone_and_moves_theta() -> None:
    results = trained(2, 12, 4, mode="streaming", fragments=2, overlap=1, merge=1.0)
    for place, (model, outer) in enumerate(results):
        alone = Model()
        inner = torch.optim.SGD(alone.parameters(), lr=0.1)
        for step in range(12):
            gradients(alone, 1000 * place + step)
            inner.step()
        assert torch.equal(model, flat(alone))
        assert not torch.equal(outer, flat(Model()))
    assert torch.equal(results[0][1], results[1][1])


def test_merge_keeps_its_part_of_the_local_parameters() -> None:
    """theta <- a theta + (1 - a) Theta, one fragment at its landing."""
    model, opt = replica(None, 4, mode="streaming", fragments=1, overlap=2, merge=0.25, outer=Average(1.0))
    list(steps(model, opt, 0, 0, 4))
    sent = flat(model)
    list(steps(model, opt, 0, 4, 1))
    gradients(model, 5)
    local = flat(model) - 0.1 * torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    opt.step()
    torch.testing.assert_close(flat(model), 0.25 * local + 0.75 * sent, rtol=1e-5, atol=1e-5)


def test_delayed_without_delay_is_diloco() -> None:
    outer = Nesterov(0.7, 0.9)
    plain = trained(3, 20, 4, outer=outer)
    late = trained(3, 20, 4, mode="delayed", overlap=0, outer=outer)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, late, strict=True))


def test_delayed_takes_every_mean_one_period_late() -> None:
    """By hand, from the equations of section 3.1."""
    outer, model, pending = vector(), Model(), None
    optimizer = torch.optim.SGD([outer], lr=0.7)
    with torch.no_grad():
        outer.copy_(flat(model))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(12):
        gradients(model, step)
        inner.step()
        if (step + 1) % 3 == 0:
            fresh = outer.detach() - flat(model)
            if pending is not None:
                outer.grad = pending
                optimizer.step()
            torch.nn.utils.vector_to_parameters(outer.detach().clone(), model.parameters())
            pending = fresh
    replica_model, opt = replica(None, 3, mode="delayed", outer=Average(0.7))
    list(steps(replica_model, opt, 0, 0, 12))
    assert torch.equal(theta(opt), outer.detach())
    assert torch.equal(flat(replica_model), outer.detach())


def test_eager_alone_is_diloco() -> None:
    outer = Nesterov(0.4, 0.9)
    model, opt = replica(None, 3, outer=outer)
    eager_model, eager = replica(None, 3, mode="eager", outer=outer, resync_every=0)
    for _ in zip(steps(model, opt, 0, 0, 12), steps(eager_model, eager, 0, 0, 12), strict=True):
        torch.testing.assert_close(flat(eager_model), flat(model), rtol=1e-5, atol=1e-6)


def test_eager_replicas_move_by_the_late_mean_and_their_own_fresh_share() -> None:
    """The mean over replicas of g is the late mean plus the mean of the differences over M: with rate 1 it shows in the
    mean of Theta. Two rounds, by hand."""

    def body(comm: Any, place: int) -> list[Tensor]:
        model, opt = replica(comm, 2, mode="eager", outer=Average(1.0), resync_every=0)
        seen = [theta(opt)]
        for step in range(4):
            gradients(model, 1000 * place + step)
            if step % 2:  # what the delta will be
                grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
                seen.append(theta(opt) - (flat(model) - 0.1 * grads))
            opt.step()
            if step % 2:
                seen.append(theta(opt))
        return seen

    results = run(2, body)
    first = [result[1] for result in results]
    second = [result[3] for result in results]
    for place, result in enumerate(results):
        torch.testing.assert_close(result[2], result[0] - first[place] / 2, rtol=1e-5, atol=1e-5)
        own = sum(first) / 2 + (second[place] - first[place]) / 2
        torch.testing.assert_close(result[4], result[2] - own, rtol=1e-5, atol=1e-5)


def test_consensus_makes_eager_replicas_equal() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, Tensor]:
        model, opt = replica(comm, 2, mode="eager", resync_every=0)
        list(steps(model, opt, place, 0, 7))
        before = theta(opt)
        opt.consensus()
        assert torch.equal(flat(model), theta(opt))
        return before, theta(opt)

    results = run(3, body)
    assert not torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(result[1], results[0][1]) for result in results)


def test_gossip_of_two_is_heavy_ball_diloco() -> None:
    """Both hold the same mean of both: the pull to it is nothing."""
    gossip = trained(2, 12, 3, mode="gossip", mixing=Mixing(0.3, 0.7, 0.7))
    plain = trained(2, 12, 3, outer=HeavyBall(0.7, 0.3))
    for (_, one), (_, other) in zip(gossip, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_gossip_keeps_four_replicas_near_each_other() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, Tensor, int]:
        model, opt = replica(comm, 2, mode="gossip", lr=0.01)
        list(steps(model, opt, place, 0, 40))
        before = theta(opt)
        opt.consensus()
        assert opt.stats.last is not None
        return before, theta(opt), len(opt.stats.last.peers)

    results = run(4, body)
    spread = torch.stack([result[0] for result in results]).std(0).norm() / results[0][0].norm()
    assert 0 < spread < 0.05
    assert all(torch.equal(result[1], results[0][1]) for result in results)
    assert all(result[2] == 2 for result in results)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.9, 1.0), (0.9, 0.39), (0.5, 1.6), (0.5, 0.0)])
def test_gossip_that_would_drift_apart_is_refused(alpha: float, gamma: float) -> None:
    with pytest.raises(ArgumentError, match="gamma"):
        Mixing(alpha, 0.7, gamma)


def test_sparse_moves_by_what_was_sent_and_keeps_the_rest() -> None:
    """Decay 1, rate 1: what all sent and what all keep is what all did."""

    def body(comm: Any, place: int) -> tuple[Tensor, Tensor, Tensor]:
        model, opt = replica(comm, 3, mode="sparse", sparse=(4, 64, 1.0), outer=Average(1.0))
        begin, did = theta(opt), torch.zeros_like(theta(opt))
        for step in range(12):
            gradients(model, 1000 * place + step)
            did += 0.1 * torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            opt.step()
        kept = torch.cat([opt._sync.rounds.exchange.unsent(f).state for f in opt._sync.fragments])  # type: ignore[attr-defined]
        return begin - theta(opt), kept, did

    results = run(3, body)
    moved, kept, did = (torch.stack([result[i] for result in results]).mean(0) for i in range(3))
    torch.testing.assert_close(moved + kept, did, rtol=1e-4, atol=1e-4)


def test_clipped_momentum_clips() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = ClippedMomentum(1.0, 0.5, 0.25)([parameter])
    parameter.grad = torch.tensor([1.0, -1.0, 0.1])
    optimizer.step()
    assert parameter.tolist() == pytest.approx([-0.25, 0.25, -0.1])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 2.0), (0.0, 3.0, 1.0)])
def test_weights_count(weights: tuple[float, ...]) -> None:
    def body(comm: Any, place: int) -> Tensor:
        model, opt = replica(comm, 1, outer=Average(1.0), weight=lambda: weights[place])
        list(steps(model, opt, place, 0, 1))
        return flat(model)

    alone = []
    for place in range(3):
        model = Model()
        gradients(model, 1000 * place)
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        alone.append(weights[place] * flat(model))
    wanted = torch.stack(alone).sum(0) / sum(weights)
    for result in run(3, body):
        torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)


def test_the_radial_average_of_equal_replicas_is_the_mean_and_keeps_lengths_of_others() -> None:
    def body(same: bool) -> list[Tensor]:
        def replica_of(comm: Any, place: int) -> Tensor:
            model, opt = replica(comm, 2, aggregate="rda", outer=Average(1.0))
            begin = theta(opt)
            list(steps(model, opt, 0 if same else place, 0, 2))
            return begin - theta(opt)

        return run(2, replica_of)

    alone = [begin[1] for begin in ((0, _alone(place)) for place in range(2))]
    torch.testing.assert_close(body(same=True)[0], alone[0], rtol=1e-5, atol=1e-5)
    head = slice(0, 5)  # a module's own parameters come before its children's
    length = sum(float(delta[head].norm()) for delta in alone) / 2
    assert float(body(same=False)[0][head].norm()) == pytest.approx(length, rel=1e-4)


def _alone(place: int) -> Tensor:
    model, begin = Model(), flat(Model())
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(2):
        gradients(model, 1000 * place + step)
        inner.step()
    return begin - flat(model)


@pytest.mark.parametrize("codec", ["bf16", "int8", "e3m0"])
@pytest.mark.parametrize("fragments", [1, 2, "strided:2"])
def test_all_replicas_hold_the_same_bytes_whatever_the_codec(codec: str, fragments: Any) -> None:
    results = trained(3, 16, 4, mode="streaming", fragments=fragments, overlap=1, codec=codec)
    assert all(torch.equal(outer, results[0][1]) for _, outer in results)
    assert not torch.equal(results[0][1], flat(Model()))


def test_the_wrapper_is_an_optimizer_and_shares_the_inner_ones_groups() -> None:
    model = Model()
    inner = torch.optim.AdamW(model.parameters(), lr=1.0)
    opt = DiLoCo(inner, model, None, every=2)
    assert isinstance(opt, torch.optim.Optimizer)
    assert opt.param_groups is inner.param_groups
    assert opt.state is inner.state
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    gradients(model, 1)
    opt.step()
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.5
    opt.flush()
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is inner.param_groups


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"every": 0}, "every"),
        ({"mode": "dilco"}, "mode"),
        ({"merge": 0.5}, "merge"),
        ({"merge": 1.5, "mode": "streaming"}, "merge"),
        ({"overlap": 2}, "overlap"),
        ({"overlap": 9, "mode": "streaming"}, "overlap"),
        ({"overlap": 2, "mode": "delayed"}, "overlap"),
        ({"mixing": Mixing()}, "mixing"),
        ({"codec": "int8", "mode": "sparse"}, "codec"),
        ({"outer": Average(), "mode": "gossip"}, "outer"),
        ({"aggregate": "median"}, "aggregate"),
        ({"on_failure": "panic"}, "on_failure"),
        ({"staleness_penalty": 1.0}, "staleness_penalty"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], culprit: str) -> None:
    model = Model()
    with pytest.raises(ArgumentError, match=culprit):
        DiLoCo(torch.optim.SGD(model.parameters(), lr=0.1), model, None, **{"every": 4, **options})
