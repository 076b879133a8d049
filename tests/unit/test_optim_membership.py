"""Replicas that die, join and err amid rounds: survivors stay equal, a round is committed by all or by none."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from unit.replicas import TIMEOUT_S, Model, door_of, flat, gradients, replica, run, steps, theta

from pccl.errors import ArgumentError, Cancelled, Closed
from pccl.optim import Average, DiLoCo, LocalComm

MODES: list[dict[str, Any]] = [
    {"mode": "diloco"},
    {"mode": "streaming", "fragments": 2, "overlap": 1},
    {"mode": "streaming", "fragments": 3, "overlap": 6, "merge": 0.5},
    {"mode": "delayed", "staleness_penalty": 1.0},
    {"mode": "sparse", "sparse": (4, 64, 0.9)},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(str(value) for value in options.values())


@pytest.mark.parametrize("options", MODES, ids=named)
@pytest.mark.parametrize("last", [5, 6, 8, 11])
def test_survivors_of_a_death_go_on_equal(options: dict[str, Any], last: int) -> None:
    """One of three dies after `last` inner steps: before a send, at it, with its delta in flight."""

    def body(comm: Any, place: int) -> tuple[Tensor, int, set[int]]:
        model, opt = replica(comm, 6, outer=Average(0.5), **options)
        worlds: list[int] = []
        opt.add_round_hook(lambda done: worlds.append(len(done.peers)))
        for step in steps(model, opt, place, 0, 24):
            if place == 2 and step + 1 == last:
                comm.die()
                return theta(opt), 0, set()
        opt.flush()
        return theta(opt), opt.stats.rounds, set(worlds)

    one, two, _ = run(3, body)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1] > 0
    assert one[2] == two[2]
    assert 2 in one[2]


@pytest.mark.parametrize("options", MODES, ids=named)
@pytest.mark.parametrize("begin", [3, 7])
def test_a_newcomer_gets_into_step(options: dict[str, Any], begin: int) -> None:
    """It enters at a boundary with what the others have, knows what is in flight, and ends with the same Theta."""
    with LocalComm(2, op_timeout=TIMEOUT_S) as comms:
        started, results = threading.Event(), {}
        at_the_door = door_of(comms)

        def newcomer() -> None:
            assert started.wait(TIMEOUT_S)
            comm = comms.join()
            model, opt = replica(comm, 6, outer=Average(0.5), seed=99, **options)
            entered = opt.global_step
            list(steps(model, opt, 7, entered, 48 - entered))
            opt.flush()
            results["new"] = (theta(opt), entered, opt.stats.rounds)
            comm.close()

        def body(comm: Any) -> tuple[Tensor, int]:
            place = comm.rank
            model, opt = replica(comm, 6, outer=Average(0.5), **options)
            worlds = []
            opt.add_round_hook(lambda done: worlds.append(len(done.peers)))
            for step in steps(model, opt, place, 0, 48):
                if step == begin:
                    started.set()
                    assert at_the_door.wait(TIMEOUT_S)
            opt.flush()
            return theta(opt), max(worlds)

        thread = threading.Thread(target=newcomer)
        thread.start()
        one, two = comms.run(body)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    outer, entered, rounds = results["new"]
    assert 0 < entered < 48
    assert rounds > 0
    assert torch.equal(outer, one[0])
    assert torch.equal(one[0], two[0])
    assert one[1] == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_delta_that_is_not_finite_is_left_out_and_named(bad: float) -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, Any, bytes]:
        model, opt = replica(comm, 2, outer=Average(1.0))
        for step in range(2):
            gradients(model, 1000 * place + step)
            if place == 1:
                model.head.grad = torch.full_like(model.head, bad)
            opt.step()
        return flat(model), opt.stats.last, comm.peer_id

    good, other, third = run(3, body)
    assert torch.isfinite(good[0]).all()
    assert torch.equal(good[0], other[0])
    assert good[1].excluded == (other[2],)
    alone = []
    for place in (0, 2):
        model = Model()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(2):
            gradients(model, 1000 * place + step)
            inner.step()
        alone.append(flat(model))
    torch.testing.assert_close(third[0], torch.stack(alone).mean(0), rtol=1e-5, atol=1e-6)


def test_if_no_delta_is_finite_nobody_moves() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, Tensor]:
        model, opt = replica(comm, 1)
        begin = theta(opt)
        gradients(model, place)
        model.head.grad = torch.full_like(model.head, float("nan"))
        opt.step()
        return flat(model), begin

    for now, begin in run(2, body):
        assert torch.equal(now, begin)


def test_replicas_that_begin_differently_begin_alike() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, str]:
        model, opt = replica(comm, 4, seed=place)
        return flat(model), opt.stats.digest

    results = run(3, body)
    assert all(torch.equal(model, results[0][0]) and digest == results[0][1] for model, digest in results)


def test_drift_is_found_and_repaired_at_the_next_boundary() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, int, tuple[str, ...]]:
        model, opt = replica(comm, 2)
        list(steps(model, opt, place, 0, 2))
        before = opt.stats.repaired_bytes
        if place == 1:
            opt._sync.fragments[0].theta[3] += 1.0
        list(steps(model, opt, place, 2, 2))
        return theta(opt), opt.stats.repaired_bytes - before, opt.stats.differences

    one, two, three = run(3, body)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[0], three[0])
    assert one[1] == three[1] == 0 < two[1]
    assert "theta.0" in one[2][0]


def test_a_step_that_the_scaler_skips_is_not_counted_and_the_others_wait() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, list[int]]:
        model, opt = replica(comm, 3, outer=Average(1.0), weight="steps")
        rounds: list[int] = []
        opt.add_round_hook(lambda done: rounds.append(done.step))
        for step in range(7 if place == 0 else 6):
            if place == 0 and step == 1:
                continue  # what GradScaler does after an infinity
            gradients(model, 1000 * place + step)
            opt.step()
        return theta(opt), rounds

    one, two = run(2, body)
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1] == [3, 6]


@pytest.mark.parametrize("options", MODES, ids=named)
def test_a_checkpoint_of_any_replica_resumes_on_any(options: dict[str, Any]) -> None:
    """Resumed is uninterrupted, to the bit; the outer part of another replica serves as well as the own."""

    outer = Average(0.5) if options["mode"] == "sparse" else None

    def whole(comm: Any, place: int) -> tuple[Tensor, Any]:
        model, opt = replica(comm, 6, outer=outer, **options)
        list(steps(model, opt, place, 0, 15))
        opt.flush()
        saved = opt.state_dict()
        list(steps(model, opt, place, 15, 15))
        opt.flush()
        return theta(opt), saved

    results = run(2, whole)

    def resumed(comm: Any, place: int) -> Tensor:
        model, opt = replica(comm, 6, outer=outer, seed=5, **options)
        opt.load_state_dict({**results[place][1], "outer": results[1 - place][1]["outer"]})
        assert opt.global_step == 15
        list(steps(model, opt, place, 15, 15))
        opt.flush()
        return theta(opt)

    for again in run(2, resumed):
        assert torch.equal(again, results[0][0])


def test_a_checkpoint_in_flight_is_refused() -> None:
    model, opt = replica(None, 4, mode="streaming", fragments=2, overlap=2)
    list(steps(model, opt, 0, 0, 5))
    with pytest.raises(ArgumentError, match="flush"):
        opt.state_dict()
    opt.flush()
    opt.state_dict()


def test_a_checkpoint_that_does_not_fit_names_what_and_changes_nothing() -> None:
    model, opt = replica(None, 4)
    saved = opt.state_dict()
    saved["outer"]["theta"].pop("head")
    list(steps(model, opt, 0, 0, 1))
    before = flat(model)
    with pytest.raises(ArgumentError, match="head"):
        opt.load_state_dict(saved)
    assert torch.equal(flat(model), before)


def test_attach_counts_the_steps_of_somebody_elses_optimizer() -> None:
    def body(comm: Any, place: int) -> tuple[Tensor, Tensor]:
        model = Model()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        with DiLoCo.attach(inner, model, comm, every=3) as sync:
            for step in range(7):
                gradients(model, 1000 * place + step)
                inner.step()
            assert sync.global_step == 7
        gradients(model, 1)
        inner.step()
        assert sync.global_step == 7
        return theta(sync), flat(model)

    wrapped = run(2, lambda comm, place: _wrapped(comm, place))
    attached = run(2, body)
    assert all(torch.equal(one[0], other) for one, other in zip(attached, wrapped, strict=True))


class Passing(torch.optim.Optimizer):
    """Passes every second step on, and has no hooks of its own: as accelerate's while it accumulates."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.calls = optimizer, 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            self.optimizer.step(closure)


def test_attach_counts_what_a_wrapper_passes_on() -> None:
    model = Model()
    outer = Passing(torch.optim.SGD(model.parameters(), lr=0.1))
    with DiLoCo.attach(outer, model, None, every=3) as sync:
        for step in range(6):
            gradients(model, step)
            outer.step()
        assert sync.global_step == 3
        assert sync.stats.rounds == 1


def test_a_loaded_state_of_an_attached_optimizer_is_seen() -> None:
    model = Model()
    inner = torch.optim.AdamW(model.parameters(), lr=0.1)
    with DiLoCo.attach(inner, model, None, every=3) as sync:
        gradients(model, 0)
        inner.step()
        inner.load_state_dict(inner.state_dict())
        assert sync.state is inner.state
        assert sync.param_groups is inner.param_groups


@pytest.mark.parametrize("options", MODES, ids=named)
def test_skipped_steps_count_and_weigh_nothing(options: dict[str, Any]) -> None:
    """A replica that skips all of its steps of a period leaves the mean to the other, and nobody waits for it."""

    def body(comm: Any, place: int) -> tuple[Tensor, int]:
        model, opt = replica(comm, 6, **options)
        for step in range(12):
            gradients(model, 1000 * place + step)
            opt.skip_step() if place else opt.step()
        opt.flush()
        return theta(opt), opt.global_step

    def alone() -> Tensor:
        model, opt = replica(None, 6, **options)
        list(steps(model, opt, 0, 0, 12))
        opt.flush()
        return theta(opt)

    one, two = run(2, body)
    assert one[1] == two[1] == 12
    assert torch.equal(one[0], two[0])
    if options["mode"] != "sparse":  # the other one's error feedback is its own
        assert torch.equal(one[0], alone())


def _wrapped(comm: Any, place: int) -> Tensor:
    model, opt = replica(comm, 3)
    list(steps(model, opt, place, 0, 7))
    return theta(opt)


def test_outer_params_shows_theta_and_gives_back_what_was() -> None:
    model, opt = replica(None, 4)
    list(steps(model, opt, 0, 0, 2))
    local = flat(model)
    with opt.outer_params():
        assert torch.equal(flat(model), theta(opt))
        assert not torch.equal(flat(model), local)
    assert torch.equal(flat(model), local)


def test_two_inner_optimizers_share_one_outer() -> None:
    model = Model()
    inner = [torch.optim.SGD([model.head], lr=0.1), torch.optim.AdamW(model.blocks.parameters(), lr=0.01)]
    opt = DiLoCo(inner, model, None, every=2, outer=Average(1.0))
    before = flat(model)
    list(steps(model, opt, 0, 0, 2))
    assert (flat(model) != before).all()
    assert len(opt.param_groups) == 2
    weight = next(model.blocks.parameters())
    assert opt.state[weight] is inner[1].state[weight]
    assert set(opt.state) == {parameter for one in inner for parameter in one.state}


def test_half_precision_parameters_have_a_float32_theta() -> None:
    model = Model().to(torch.bfloat16)
    opt = DiLoCo(torch.optim.SGD(model.parameters(), lr=0.1), model, None, every=2)
    for step in range(4):
        numbers = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=numbers).to(torch.bfloat16)
        opt.step()
    assert theta(opt).dtype == torch.float32
    assert torch.equal(flat(model), theta(opt).to(torch.bfloat16).float())


def test_a_closed_communicator_is_an_error_of_the_step_and_the_step_was_made() -> None:
    with LocalComm(1, op_timeout=TIMEOUT_S) as comms:
        model, opt = replica(comms[0], 1)
        comms[0].close()
        before = flat(model)
        gradients(model, 1)
        with pytest.raises(Closed):
            opt.step()
    assert not torch.equal(flat(model), before)


@pytest.mark.parametrize("options", [{"mode": "eager", "resync_every": 0}, {"mode": "gossip"}], ids=named)
def test_a_consensus_that_a_peer_fails_is_done_by_the_survivors(options: dict[str, Any]) -> None:
    """One of three never comes to it: the others' deadline passes, and it dies. The mean is that of the survivors."""
    failed = threading.Event()

    def body(comm: Any, place: int) -> tuple[Tensor, Tensor]:
        model, opt = replica(comm, 2, timeout=0.5, **options)
        list(steps(model, opt, place, 0, 5))
        opt.flush()
        before = theta(opt)
        if place == 2:
            assert failed.wait(TIMEOUT_S)
            comm.die()
            return before, before
        give_up = opt._sync._give_up

        def told(*arguments: Any) -> None:
            failed.set()
            give_up(*arguments)

        opt._sync._give_up = told  # type: ignore[method-assign]
        opt.consensus()
        assert torch.equal(flat(model), theta(opt))
        return before, theta(opt)

    one, two, _ = run(3, body)
    assert failed.is_set()
    assert not torch.equal(one[0], two[0])
    assert torch.equal(one[1], (one[0] + two[0]) / 2)
    assert torch.equal(two[1], one[1])


def test_who_enters_amid_a_consensus_ends_with_the_mean_and_adds_nothing() -> None:
    """It fails, a newcomer waits at the door, and enters at the boundary before the second attempt."""
    with LocalComm(2, op_timeout=TIMEOUT_S) as comms:
        at_the_door, failed, results = door_of(comms), threading.Event(), {}

        def newcomer() -> None:
            assert failed.wait(TIMEOUT_S)
            comm = comms.join()
            model, opt = replica(comm, 2, seed=9, mode="eager", resync_every=0)
            opt.consensus()  # is done, as its first step of all
            results["new"] = (theta(opt), flat(model))
            comm.close()

        def body(comm: Any) -> tuple[Tensor, Tensor]:
            model, opt = replica(comm, 2, mode="eager", resync_every=0)
            list(steps(model, opt, comm.rank, 0, 5))
            opt.flush()
            before, sums = theta(opt), opt._sync._sum

            def failing(*arguments: Any) -> Any:
                if failed.is_set():
                    return (yield from sums(*arguments))
                yield from ()
                barrier.wait(TIMEOUT_S)
                failed.set()
                assert at_the_door.wait(TIMEOUT_S)
                raise Cancelled("by the test")

            opt._sync._sum = failing  # type: ignore[method-assign]
            opt.consensus()
            return before, theta(opt)

        barrier = threading.Barrier(2)
        thread = threading.Thread(target=newcomer)
        thread.start()
        one, two = comms.run(body)
        thread.join(TIMEOUT_S)
    assert torch.equal(one[1], (one[0] + two[0]) / 2)
    assert torch.equal(two[1], one[1])
    assert torch.equal(results["new"][0], one[1])
    assert torch.equal(results["new"][1], one[1])
