"""attach() on the optimizer of a trainer, with real peers: accumulation, clipping, skipped steps, checkpoints, joining.

The trainer is transformers.Trainer's double everywhere, and itself where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.trainer_peer import (
    CLIP,
    OP_TIMEOUT_S,
    OUTER,
    PARTS,
    SAVE_AT,
    STEPS,
    Job,
    Net,
    Outcome,
    adamw,
    batches,
    schedule,
)
from torch import nn

from pccl.coordinator.server import Coordinator
from pccl.optim import DiLoCo, LocalComm, Nesterov

TESTS = str(Path(__file__).resolve().parents[1])
SCRIPT = str(Path(__file__).with_name("trainer_peer.py"))
SKIPPED, NEVER = 5, STEPS + 1  # with GradScaler in both cases
ROUNDS = 4 + 3  # sent after steps 4, 8, 12, 16 and 6, 10, 14
GATE = 9


class Peer:
    """A process that does jobs."""

    def __init__(self, forked: str) -> None:
        command, environ = [sys.executable, forked, SCRIPT], {**os.environ, "PYTHONPATH": TESTS}
        self._busy = False
        self._popen = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def begin(self, coordinator: Coordinator, place: int, folder: Path, **more: Any) -> None:
        self._busy = True
        self.say(json.dumps(asdict(Job(coordinator.address, place, str(folder / str(place)), **more))))

    def told(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, f"the peer ended with {self._popen.wait()}"
        told: dict[str, Any] = json.loads(line)
        return told

    def outcome(self) -> Outcome:
        outcome = Outcome(**self.told())
        self._busy = False
        return outcome

    def is_free(self) -> bool:
        return self._popen.poll() is None and not self._busy

    def close(self) -> None:
        self._popen.kill()
        self._popen.communicate()


@pytest.fixture(scope="module")
def peers(forked: str) -> Iterator[Callable[[int], list[Peer]]]:
    """As many as are asked for; they serve all tests, but for those that a failed test has left."""
    made: list[Peer] = []

    def of(number: int) -> list[Peer]:
        free = [peer for peer in made if peer.is_free()]
        fresh = [Peer(forked) for _ in range(number - len(free))]
        made.extend(fresh)
        return [*free, *fresh][:number]

    yield of
    for peer in made:
        peer.close()


def train(pair: list[Peer], folder: Path, more: Callable[[int], dict[str, Any]]) -> list[Outcome]:
    """All together, from the first step or from a checkpoint."""
    with Coordinator(form_peers=len(pair)) as coordinator:
        for place, peer in enumerate(pair):
            peer.begin(coordinator, place, folder, **more(place))
        return [peer.outcome() for peer in pair]


def by_hand(skipped: dict[int, int]) -> list[list[float]]:
    """The same training in one process, with the optimizer that wraps another and a loop without a trainer. `skipped`:
    by place."""
    models = [Net(0) for _ in range(2)]

    def replica(comm: Any) -> list[float]:
        model, feed = models[comm.rank], batches(comm.rank)
        inner = adamw(model)
        lr = schedule(inner)
        opt = DiLoCo(inner, model, comm, outer=Nesterov(0.7, 0.9), **OUTER)
        for step in range(1, STEPS + 1):
            for batch in islice(feed, PARTS):
                (model(batch) / PARTS).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            if step == skipped.get(comm.rank):
                opt.skip_step()
            else:
                opt.step()
                lr.step()
            model.zero_grad()
            if step % SAVE_AT == 0:
                opt.flush()
        opt.flush()
        theta: list[float] = torch.cat([fragment.theta for fragment in opt._sync.fragments]).tolist()
        return theta

    with LocalComm(2, op_timeout=OP_TIMEOUT_S) as comms:
        return comms.run(replica)


def test_a_trainers_loop_is_one_by_hand_and_goes_on_from_a_checkpoint(peers: Any, tmp_path: Path) -> None:
    pair = peers(2)
    whole = train(pair, tmp_path / "whole", lambda place: {"skipped": SKIPPED if place else NEVER})
    assert [(one.first, one.last, one.counted) for one in whole] == [(0, STEPS, STEPS)] * 2
    assert [one.made for one in whole] == [STEPS, STEPS - 1], "one step was skipped"
    assert whole[0].theta == whole[1].theta
    assert whole[0].rounds == whole[1].rounds == ROUNDS
    assert whole[0].theta == by_hand({1: SKIPPED})[0]

    saved = [str(tmp_path / "whole" / str(place) / f"checkpoint-{SAVE_AT}") for place in range(2)]
    resumed = train(pair, tmp_path / "again", lambda place: {"skipped": NEVER, "resume": saved[place]})
    assert [(one.first, one.last, one.made) for one in resumed] == [(SAVE_AT, STEPS, STEPS - SAVE_AT)] * 2
    assert [one.theta for one in resumed] == [one.theta for one in whole], "to the bit, as if nothing had been"
    assert [one.lr for one in resumed] == [one.lr for one in whole]


@pytest.mark.parametrize("from_a_checkpoint", [False, True], ids=["fresh", "from a checkpoint"])
def test_a_newcomers_trainer_begins_where_the_run_is(peers: Any, tmp_path: Path, from_a_checkpoint: bool) -> None:
    """Also one that has an old checkpoint: that a peer died and was started again is no reason to go back."""
    *pair, newcomer = peers(3)
    with Coordinator(form_peers=2) as coordinator:
        for place, peer in enumerate(pair):
            peer.begin(coordinator, place, tmp_path, gate=GATE)
        assert [peer.told() for peer in pair] == [{"gate": GATE}] * 2
        epoch = coordinator.status().groups[0].epoch
        resume = str(tmp_path / "1" / f"checkpoint-{SAVE_AT}") if from_a_checkpoint else ""
        newcomer.begin(coordinator, 2, tmp_path, seed=2, resume=resume)
        deadline = time.monotonic() + OP_TIMEOUT_S
        while coordinator.status().groups[0].epoch == epoch:
            assert time.monotonic() < deadline, "nobody joins"
            threading.Event().wait(0.05)
        for peer in pair:
            peer.say("")
        outcomes = [peer.outcome() for peer in [*pair, newcomer]]
    assert {tuple(one.theta) for one in outcomes} == {tuple(outcomes[0].theta)}
    assert {(one.last, one.counted, one.lr) for one in outcomes} == {(STEPS, STEPS, outcomes[0].lr)}
    joined = outcomes[2]
    assert GATE < joined.first < STEPS
    assert joined.made == STEPS - joined.first


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("transformers", "accelerate")),
    reason="transformers and accelerate are not installed: its double was tested",
)
def test_transformers_trainer_is_its_double(peers: Any, tmp_path: Path) -> None:
    pair = peers(2)
    real = train(pair, tmp_path / "real", lambda place: {"real": True})
    assert [(one.first, one.last, one.made) for one in real] == [(0, STEPS, STEPS)] * 2
    assert [one.theta for one in real] == by_hand({})
    saved = [str(tmp_path / "real" / str(place) / f"checkpoint-{SAVE_AT}") for place in range(2)]
    resumed = train(pair, tmp_path / "again", lambda place: {"real": True, "resume": saved[place]})
    assert [(one.first, one.last, one.made) for one in resumed] == [(SAVE_AT, STEPS, STEPS - SAVE_AT)] * 2
    assert [one.theta for one in resumed] == [one.theta for one in real]
