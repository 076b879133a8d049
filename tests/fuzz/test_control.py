"""The control plane under hostile messages: what was found once, and some thousand inputs more (control.py)."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from fuzz import control
from fuzz.world import World

from pccl import messages as m
from pccl.errors import ProtocolError

INPUTS = 8000


@pytest.mark.parametrize("path", sorted(control.CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_was_found_once(path: Path) -> None:
    control.replay(msgspec.msgpack.decode(path.read_bytes()))


def test_some_thousand_inputs() -> None:
    assert control.fuzz(1, inputs=INPUTS, seconds=None) >= INPUTS


def test_a_case_is_drawn_from_its_number_alone() -> None:
    steps = []
    for _ in range(2):
        case = control.Case(3, 5, control.messages(control.corpus()))
        case.run()
        case.world.close()
        steps.append(case.world.steps)
    assert steps[0] == steps[1]


def test_mutants_reach_every_kind_of_message() -> None:
    of_each = msgspec.msgpack.decode((control.CORPUS / "kinds").read_bytes())
    case = control.Case(1, 1, control.messages([of_each]))
    kinds = set()
    for _ in range(6000):
        data = case._mutator.mutant()
        for decode in (m.decode_at_coordinator, m.decode_at_peer):
            try:
                kinds.add(type(decode(data)))
            except ProtocolError:
                continue
    case.world.close()
    assert kinds == {*m.ToCoordinator.__args__, *m.ToPeer.__args__}


def test_a_bug_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that escapes a handler, and a table that grows, end a case."""
    steps = msgspec.msgpack.decode((control.CORPUS / "honest").read_bytes())
    monkeypatch.setattr("fuzz.world.LOG_MAX", 3)
    with pytest.raises(AssertionError):
        control.replay(steps)
    monkeypatch.undo()
    monkeypatch.setattr(World, "_on_up", lambda self, sender, data: {}[sender])
    with pytest.raises(KeyError):
        control.replay(steps)
