"""Refusals: every reason gets its line, and nobody who is refused often fills the log."""

from __future__ import annotations

import logging

import pytest

from pccl.refusals import REASONS_MAX, Refusals


def test_one_line_per_reason_and_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "pccl")
    refusals = Refusals()
    for port in range(100):
        refusals.note(5.0, f"192.0.2.1:{port}: no secret")
    refusals.note(5.5, "192.0.2.2:1: no certificate")
    refusals.note(6.0, "192.0.2.1:7: no secret")
    assert [record.getMessage() for record in caplog.records] == [
        "refused a stream, 192.0.2.1:0: no secret",
        "refused a stream, 192.0.2.2:1: no certificate",
        "refused a stream, 192.0.2.1:7: no secret (99 more since the last such line)",
    ]


def test_what_is_remembered_is_bounded() -> None:
    refusals = Refusals()
    for number in range(10 * REASONS_MAX):
        refusals.note(0.0, f"192.0.2.1:1: reason {number}")
    assert len(vars(refusals)["_reasons"]) == REASONS_MAX
