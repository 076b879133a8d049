"""What golden histories are: a small problem that every mode of pccl.optim solves while a replica errs, one dies and
another comes, written down round by round.

    python -m unit.optim_golden        # in tests/: writes golden/*.json anew and prints what has changed

Everything is elementwise float32 on given numbers, so that machines differ by the rounding of fused multiplications
only; TOLERANCE is what test_optim_golden.py allows for that. Replicas make their steps at the same time (`Lockstep`):
who takes part in a round does not depend on how threads run.
"""

from __future__ import annotations

import difflib
import json
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from unit.replicas import door_of

from pccl.optim import DiLoCo, LocalComm, Round
from pccl.optim.local import LocalCommunicator

TOLERANCE = 1e-4
PLACE = Path(__file__).parent / "golden"
PEERS, EVERY, STEPS = 3, 4, 40
BAD, DEATH, DOOR = (1, 6), (2, 13), 20  # replica 1 sees a NaN in step 6, 2 dies after step 13, a newcomer waits from 20
SIZES = {"blocks.0.w": 24, "blocks.1.w": 40}
PATIENCE_S = 30.0

CASES: dict[str, dict[str, Any]] = {
    "diloco": {"mode": "diloco"},
    "diloco-bf16": {"mode": "diloco", "codec": "bf16"},
    "diloco-fp16": {"mode": "diloco", "codec": "fp16"},
    "diloco-int8": {"mode": "diloco", "codec": "int8"},
    "diloco-e3m0": {"mode": "diloco", "codec": "e3m0"},
    "diloco-rda": {"mode": "diloco", "aggregate": "rda"},
    "localsgd": {"mode": "localsgd"},
    "streaming": {"mode": "streaming", "fragments": 2, "overlap": 1, "merge": 0.5},
    "streaming-e3m0": {"mode": "streaming", "fragments": 2, "overlap": 1, "codec": "e3m0"},
    "delayed": {"mode": "delayed"},
    "delayed-penalty": {"mode": "delayed", "staleness_penalty": 1.0},
    "eager": {"mode": "eager", "resync_every": 3},
    "gossip": {"mode": "gossip"},
    "sparse": {"mode": "sparse", "sparse": (4, 64, 0.9)},
}


def _wanted(place: int, step: int, size: int) -> Tensor:
    """What a replica's batch of that step pulls its parameters to: eighths between -5 and 5 of them."""
    return ((torch.arange(size) * 7 + 5 * place + 3 * step) % 11 - 5).float() / 8 + 1


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Module() for _ in SIZES)
        for block, size in zip(self.blocks, SIZES.values(), strict=True):
            block.w = nn.Parameter(torch.zeros(size))

    def pull(self, place: int, step: int) -> None:
        """Sets the gradients of a step."""
        for parameter in self.parameters():
            parameter.grad = parameter.detach() - _wanted(place, step, parameter.numel())
        if (place, step) == BAD:
            for parameter in self.parameters():
                parameter.grad = torch.full_like(parameter, float("nan"))


class Lockstep:
    """Nobody begins a step before all members have ended the one before."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ended: dict[bytes, int] = {}

    def end(self, comm: LocalCommunicator, step: int, is_last: bool = False) -> None:
        """This member has ended a step, its last if it dies or is done with all."""
        with self._changed:
            self._ended[comm.peer_id] = STEPS + 1 if is_last else step
            self._changed.notify_all()
            if not is_last:
                peers = comm.peers
                assert self._changed.wait_for(
                    lambda: all(self._ended.get(peer, -1) >= step for peer in peers), PATIENCE_S
                )


class History:
    """Plays a case and keeps what every replica tells of its rounds."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._lockstep = Lockstep()
        self._places: dict[bytes, int] = {}
        self.told: dict[int, list[dict[str, Any]]] = {}
        self.ends: dict[int, dict[str, Any]] = {}

    def play(self) -> None:
        """Blocks until all have come to the end."""
        with LocalComm(PEERS, op_timeout=PATIENCE_S) as comms:
            at_the_door = door_of(comms)
            self._places = {comm.peer_id: place for place, comm in enumerate(comms)}
            errors: list[BaseException] = []

            def newcomer() -> None:
                try:
                    comm = comms.join(PATIENCE_S)
                    self._places[comm.peer_id] = PEERS
                    self._train(comm, PEERS)
                except BaseException as error:  # noqa: BLE001 - raised again below
                    errors.append(error)

            thread = threading.Thread(target=newcomer, daemon=True)

            def at(place: int, step: int) -> None:
                if (place, step) == (0, DOOR):
                    thread.start()
                    assert at_the_door.wait(PATIENCE_S)

            comms.run(lambda comm: self._train(comm, self._places[comm.peer_id], at))
            thread.join(PATIENCE_S)
            if errors:
                raise errors[0]

    def _train(self, comm: LocalCommunicator, place: int, at: Any = lambda place, step: None) -> None:
        model = _Model()
        opt = DiLoCo(torch.optim.SGD(model.parameters(), lr=0.25), model, comm, every=EVERY, **self._options)
        self.told[place] = []
        opt.add_round_hook(lambda done: self.told[place].append(self._line(opt, done)))
        self._lockstep.end(comm, opt.global_step)
        for step in range(opt.global_step + 1, STEPS + 1):
            model.pull(place, step)
            opt.step()
            at(place, step)
            if (place, step) == DEATH:
                comm.die()
                self._lockstep.end(comm, step, is_last=True)
                return
            self._lockstep.end(comm, step)
        opt.flush()
        if self._options["mode"] in ("eager", "gossip"):
            opt.consensus()
        self.ends[place] = {"rounds": opt.stats.rounds, "dropped": opt.stats.dropped, **_numbers(opt)}
        self._lockstep.end(comm, STEPS, is_last=True)

    def _line(self, opt: DiLoCo, done: Round) -> dict[str, Any]:
        return {
            "step": done.step,
            "fragment": done.fragment,
            "round": done.number,
            "members": sorted(self._places[peer] for peer in done.peers),
            "excluded": sorted(self._places[peer] for peer in done.excluded),
            "delta": done.delta_norm,
            "mean": done.mean_norm,
            "cosine": done.cosine,
            **_numbers(opt),
        }


def _numbers(opt: DiLoCo) -> dict[str, float]:
    """Loss of Theta, two sums that stand for its bytes, and the length of what the optimizer keeps beside it."""
    views = {name: view.double() for fragment in opt._sync.fragments for name, view in fragment.theta_by_name().items()}
    ramps = {
        name: torch.arange(1, view.numel() + 1, dtype=torch.float64) / view.numel() for name, view in views.items()
    }
    kept = [value for name, value in opt._sync.entries().items() if name.startswith(("outer.", "mode."))]
    squares = [float(value.double().square().sum()) for value in kept if isinstance(value, Tensor)]
    return {
        "loss": sum(float((view - 1).square().mean()) for view in views.values()),
        "sum": sum(float(view.sum()) for view in views.values()),
        "ramp": sum(float(torch.dot(view, ramps[name])) for name, view in views.items()),
        "momentum": sum(squares) ** 0.5,
    }


def history(case: str) -> dict[str, Any]:
    """The history of a case, as it is written down: per replica its rounds, and where it ended."""
    played = History(CASES[case])
    played.play()
    return {
        "options": {name: list(value) if isinstance(value, tuple) else value for name, value in CASES[case].items()},
        "rounds": {str(place): played.told[place] for place in sorted(played.told)},
        "ends": {str(place): played.ends[place] for place in sorted(played.ends)},
    }


def text_of(found: dict[str, Any]) -> str:
    """One round to a line, six digits: what a reviewer can read."""

    def short(value: Any) -> Any:
        return float(f"{value:.6g}") if isinstance(value, float) else value

    def line(entry: dict[str, Any]) -> str:
        return json.dumps({name: short(value) for name, value in entry.items()})

    rounds = [
        f'    "{place}": [\n' + ",\n".join(f"      {line(entry)}" for entry in entries) + "\n    ]"
        for place, entries in found["rounds"].items()
    ]
    ends = [f'    "{place}": {line(entry)}' for place, entry in found["ends"].items()]
    return (
        f'{{\n  "options": {json.dumps(found["options"])},\n  "rounds": {{\n' + ",\n".join(rounds)
        + '\n  },\n  "ends": {\n' + ",\n".join(ends) + "\n  }\n}\n"
    )  # fmt: skip


def main() -> None:
    """Writes all histories anew and prints the differences, for review."""
    for case in CASES:
        path = PLACE / f"{case}.json"
        before = path.read_text() if path.exists() else ""
        after = text_of(history(case))
        lines = difflib.unified_diff(
            before.splitlines(), after.splitlines(), f"{case} before", f"{case} now", "", "", 0, ""
        )
        print("\n".join(lines) or f"{case}: as before")
        path.write_text(after)


if __name__ == "__main__":
    main()
