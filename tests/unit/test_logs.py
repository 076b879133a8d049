"""pccl.logs: fields of records, one JSON object a line."""

from __future__ import annotations

import io
import json
import logging

from pccl import logs


def test_a_record_is_one_object() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.json_formatter())
    log = logging.getLogger("pccl.tests.logs")
    log.propagate = False
    log.addHandler(handler)
    log.warning("an op\nfailed: %s", "gone", extra=logs.about("llama", bytes(range(16)), 3, "all_reduce sum"))
    log.error("a thread failed", extra=logs.about("llama", bytes(16), 0))
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("caught")
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "pccl.tests.logs",
        "run": "llama",
        "peer": "00010203",
        "epoch": 3,
        "op": "all_reduce sum",
        "message": "an op\nfailed: gone",
    }
    assert first["time"].endswith("+00:00")
    assert "epoch" not in second and "op" not in second and second["peer"] == "00000000"
    assert "ValueError: wrong" in third["error"] and "run" not in third
