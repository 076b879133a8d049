"""Traces and metrics of real peers: one is killed, and the picture shows the same ops on both."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from click.testing import CliRunner

import pccl
from pccl import _native
from pccl.cli import main
from pccl.metrics import serve
from pccl.trace import files
from pccl.trace.recorder import Recorder
from pccl.trace.records import End, Epoch, Fetch, Freeze, Submit, Wait

PATIENCE_S = 60

# The second peer kills itself when its trace says that 20 ops have ended; the other goes on alone.
SCRIPT = """
import os, signal
from pathlib import Path
import numpy as np
import pccl

with pccl.connect() as comm:
    trace = Path(os.environ["PCCL_TRACE"]) / f"{comm.peer_id.hex()}.jsonl"
    victim = comm.rank == 1
    while comm.world_size == 2:
        work = comm.all_reduce(np.ones(1 << 14, np.float32), op="avg", async_op=True, tag="gradient")
        comm.barrier()
        work.wait()
        if victim and trace.read_text().count('"e":"end"') > 20:
            os.kill(os.getpid(), signal.SIGKILL)
        comm.advance()
    comm.all_reduce(np.ones(8), tag="alone")
"""


def of_kind(trace: files.PeerTrace, kind: type) -> list[Any]:
    return [record for record in trace.records if isinstance(record, kind)]


def test_two_peers_of_which_one_is_killed(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    where = tmp_path / "traces"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from pccl.cli import main; main()",
            "launch",
            "-n",
            "2",
            "--min-peers",
            "1",
            "script.py",
        ],
        cwd=tmp_path,
        env=os.environ | {"PCCL_TRACE": str(where)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    merged = CliRunner().invoke(main, ["trace", str(where), "-o", str(tmp_path / "trace.json")])
    assert merged.exit_code == 0 and "moments in common" in merged.output, merged.output
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    ops: dict[str, dict[int, dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X" and event["cat"] == "op":
            ops.setdefault(event["args"]["op"], {})[event["pid"]] = event
    shared = [of_peers for of_peers in ops.values() if len(of_peers) == 2]
    well = [of_peers for of_peers in shared if {bar["args"]["outcome"] for bar in of_peers.values()} == {"ok"}]
    assert len(well) >= 20
    for bars in well:
        assert len({(bar["name"], bar["args"]["epoch"], bar["args"]["algorithm"]) for bar in bars.values()}) == 1
    assert len([event for event in events if event["ph"] == "s"]) == len([e for e in events if e["ph"] == "f"]) >= 20
    traces = sorted(files.read(files.find([where])), key=lambda trace: len(of_kind(trace, Epoch)))
    assert [len(of_kind(trace, Epoch)[-1].members) for trace in traces] == [2, 1], "the survivor saw an epoch alone"
    assert of_kind(traces[1], Freeze) and [e for e in events if e["ph"] == "X" and e["name"].startswith("freeze, ")]
    assert of_kind(traces[1], End)[-1].row == "tag 'alone'"
    assert {wait.what for wait in of_kind(traces[1], Wait)} >= {"wait", "advance"}


def test_what_one_process_sees(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An op that fails, a list, a pair, shared state, counts of stats, the same as metrics, and fields in the log."""
    caplog.set_level(logging.DEBUG, "pccl")

    def body(comm: pccl.Communicator) -> dict[str, Any]:
        comm.all_reduce([np.ones(8, np.float32), np.ones(8, np.int64)])
        if comm.rank == 0:
            comm.send(np.ones(4), 1)
        else:
            comm.recv(np.ones(4), 0)
        with pytest.raises(pccl.Timeout):
            comm.all_reduce(np.ones(8), tag=comm.rank, timeout=0.2)
        comm.sync_state(
            {"step": 1, "weights": np.full(1 << 16, comm.rank)}, strategy="receive" if comm.rank else "send"
        )
        comm.barrier()
        with serve(comm, 0) as server, urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        assert 'pccl_peer_ops_total{group="0",kind="send_recv",outcome="ok",run="default"} 1.0' in page
        assert "pccl_peer_link_sent_bytes_total{" in page
        return comm.stats()

    stats = cluster(2, body, trace=str(tmp_path))
    for of_peer in stats:
        ops = {(op["kind"], op["outcome"]): op["count"] for op in of_peer["ops"]}
        assert ops["all_reduce", "ok"] >= 2 and ops["all_reduce", "etimeout"] == 1
        waits = {wait["what"]: wait for wait in of_peer["waits"]}
        assert waits["sync_state"]["count"] == 1 and waits["wait"]["seconds"] >= 0.15
    fetched_bytes: dict[str, int] = {}
    for trace in files.read(files.find([tmp_path])):
        assert {submit.row for submit in of_kind(trace, Submit)} >= {"ops", "lists", "send, recv"}
        (failed,) = [end for end in of_kind(trace, End) if end.outcome != "ok"]
        assert failed.outcome == "etimeout" and failed.what == "all_reduce sum float64[8]"
        tokens = [submit.token for submit in of_kind(trace, Submit)]
        assert sorted(tokens) == sorted(end.token for end in of_kind(trace, End)), "each op has ended, once"
        well = [end for end in of_kind(trace, End) if end.outcome == "ok"]
        assert {end.world_size for end in well} == {2} and max(end.engine_ns for end in well) > 0
        fetched = sum(fetch.nbytes for fetch in of_kind(trace, Fetch) if fetch.outcome == "ok")
        fetched_bytes[trace.begin.peer] = fetched
        assert "sync_state" in {wait.what for wait in of_kind(trace, Wait)}
    assert max(fetched_bytes.values()) >= 8 << 16, "one of the two had other weights"
    failed_here = [record for record in caplog.records if "an op failed" in record.getMessage()]
    assert {record.peer for record in failed_here} == {peer[:8] for peer in fetched_bytes}  # type: ignore[attr-defined]
    assert all(record.epoch >= 1 and record.op.startswith("all_reduce sum") for record in failed_here)  # type: ignore[attr-defined]


def test_without_a_trace_nothing_of_it_runs(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*anything: object, **named: object) -> None:
        raise AssertionError("no trace was asked for")

    monkeypatch.setattr(Recorder, "__init__", never)
    monkeypatch.setattr(Recorder, "put", never)
    monkeypatch.chdir(tmp_path)

    def body(comm: pccl.Communicator) -> None:
        comm.all_reduce(np.ones(8))
        comm.advance()
        assert type(comm._runtime.engine) is _native.Engine and comm._runtime.trace is None
        assert "pccl-trace" not in {thread.name for thread in threading.enumerate()}

    cluster(2, body)
    assert not list(tmp_path.iterdir())
