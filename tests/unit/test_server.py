"""The coordinator's process: room for as many connections as it lets peers in."""

from __future__ import annotations

import logging
import resource

import pytest

from pccl.coordinator import server


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "warned"),
    [
        (1024, 1 << 20, 1000 + server.DESCRIPTORS_BESIDES, False),
        (1024, resource.RLIM_INFINITY, 1000 + server.DESCRIPTORS_BESIDES, False),
        (256, 512, 512, True),
        (1 << 16, 1 << 20, None, False),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, False),
    ],
)
def test_descriptors_for_all_peers(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    raised: int | None,
    warned: bool,
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: limits.append(both))
    with caplog.at_level(logging.WARNING):
        server._make_room(1000)
    assert limits == ([] if raised is None else [(raised, hard)])
    assert [record.getMessage() for record in caplog.records] == (
        ["512 descriptors allow for 384 peers, not 1000: see ulimit -Hn"] if warned else []
    )
