"""The real coordinator under a small crowd of sessions: what each event brings about, message by message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

from stress.scale import crowd
from stress.scale.crowd import CrowdError, room_for
from stress.scale.load import rows

N = 12


def test_a_crowd() -> None:
    """A step: a question to all, their answers, the epoch, a heartbeat and its Ack from all: five messages each."""
    found = {row["event"]: row for row in rows([N], 2, 2.0, replan=False)}
    assert set(found) == {"form", "join", "leave", "death", "verdict", "advance", "heartbeat"}
    assert found["advance"]["messages"] == 0 and found["advance"]["trials"] == 20 * N
    assert found["form"]["messages"] >= 5 * N and found["join"]["messages"] == 5 * N + 5
    assert found["leave"]["messages"] == found["join"]["messages"] - 3
    assert found["verdict"]["messages"] == 5 * N + 1
    assert found["death"]["trials"] == 2 and found["death"]["messages"] >= 5 * N + 2
    for row in found.values():
        assert 0 < row["worst_ms"] < 60e3 and row["coordinator_cpu_ms"] > 0, row


def test_more_sessions_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd.resource, "getrlimit", lambda which: (256, 1024))
    with pytest.raises(CrowdError, match="3200 descriptors, and the limit is 1024"):
        room_for(1000)
