"""The checker of chaos runs sees each broken promise, and none where none is: histories with one planted violation."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

from stress.chaos import checker, contents, history, report  # noqa: E402

LEASE_S = 4.0
PEERS = {"p0.1": "aa", "p1.1": "bb", "p2.1": "cc"}
Lines = dict[str, list[dict[str, Any]]]


def end(t: float, n: int, peers: list[str], b: int = 1, **facts: Any) -> dict[str, Any]:
    """A committed op."""
    good = {"ok": True, "epoch": 1, "peers": peers, "digest": f"of {b} {n}", "wrong": "", "retries": 0, "s": 0.1}
    return {"e": "end", "t": t, "b": b, "n": n, "kind": "all_reduce", **good, **facts}


def failed(t: float, n: int, error: str, b: int = 1, intact: bool = True, kind: str = "all_reduce") -> dict[str, Any]:
    facts = {"ok": False, "error": error, "text": "in words", "intact": intact}
    return {"e": "end", "t": t, "b": b, "n": n, "kind": kind, **facts}


def good() -> Lines:
    """Three peers, two boundaries; the third is killed after boundary 1, its successor enters at 3."""
    driver: list[dict[str, Any]] = [{"e": "started", "t": 0.0, "name": name, "site": name[:2]} for name in PEERS]
    driver += [
        {"e": "begun", "t": 1.0},
        {"e": "fault", "t": 3.0, "id": 0, "kind": "kill", "name": "p2.1", "site": "p2", "other": "", "amount": 0},
        {"e": "ended", "t": 3.1, "name": "p2.1", "code": -9},
        {"e": "calm", "t": 8.0},
        {"e": "stop", "t": 8.0},
        *({"e": "ended", "t": 9.0, "name": name, "code": 0} for name in ("p0.1", "p1.1")),
    ]
    hub = [
        {"e": "decision", "t": 3.2, "epoch": 1, "peer": "cc", "what": "lost", "reason": "refused"},
        {"e": "decision", "t": 3.2, "epoch": 1, "peer": "", "what": "freeze", "reason": "loss"},
        {"e": "decision", "t": 3.3, "epoch": 2, "peer": "", "what": "epoch", "reason": "loss"},
    ]
    lines: Lines = {"driver": driver, "hub.1": hub}
    for name, peer in PEERS.items():
        own: list[dict[str, Any]] = [{"e": "member", "t": 0.9, "peer": peer, "entered": 0, "b": 0, "epoch": 1}]
        own.append({"e": "sync", "t": 1.0, "b": 0, "ok": True, "exact": True, "digest": "d", "s": 0.1})
        own.append({"e": "advance", "t": 1.5, "b": 1, "epoch": 1, "s": 0.0})
        own.append({"e": "begin", "t": 2.0, "b": 1, "n": 0, "kind": "all_reduce"})
        own.append(end(2.2, 0, ["aa", "bb", "cc"]))
        if peer != "cc":
            own.append({"e": "begin", "t": 2.9, "b": 1, "n": 1, "kind": "all_reduce"})
            own.append(end(3.5, 1, ["aa", "bb"], epoch=2, retries=1, s=0.6))
            own.append({"e": "advance", "t": 3.6, "b": 2, "epoch": 2, "s": 0.0})
            own.append({"e": "closed", "t": 8.9, "s": 0.1})
        lines[name] = own
    return lines


def find(lines: Lines, writer: str, what: str, **facts: Any) -> dict[str, Any]:
    """The first event of that kind with these facts."""
    wanted = {"e": what, **facts}.items()
    return next(event for event in lines[writer] if wanted <= event.items())


def fault(kind: str, name: str, begin: float, end_: float) -> list[dict[str, Any]]:
    facts = {"kind": kind, "name": name, "site": name[:2], "other": "p0", "amount": 0}
    return [{"e": "fault", "t": begin, "id": 9, **facts}, {"e": "mended", "t": end_, "id": 9}]


def evict(lines: Lines, t: float = 6.0) -> None:
    """p1 loses its membership."""
    lines["hub.1"].append({"e": "decision", "t": t, "epoch": 2, "peer": "bb", "what": "lease", "reason": "silent"})


def another_digest(lines: Lines) -> None:
    find(lines, "p1.1", "end", n=0)["digest"] = "other"


def other_participants(lines: Lines) -> None:
    find(lines, "p1.1", "end", n=1)["peers"] = ["bb"]


def one_failed(lines: Lines) -> None:
    lines["p1.1"][lines["p1.1"].index(find(lines, "p1.1", "end", n=1))] = failed(3.5, 1, "PeerLost")


def a_survivor_lacks_it(lines: Lines) -> None:
    lines["p1.1"].remove(find(lines, "p1.1", "end", n=1))


def never_called(lines: Lines) -> None:
    for what in ("begin", "end"):
        lines["p2.1"].remove(find(lines, "p2.1", what, n=0))


def wrong_bytes(lines: Lines) -> None:
    find(lines, "p0.1", "end", n=0)["wrong"] = "1 of 16 elements"


def wrong_bytes_and_corruption(lines: Lines) -> None:
    wrong_bytes(lines)
    lines["driver"] += fault("corrupt", "p0.1", 2.0, 3.0)


def input_changed(lines: Lines) -> None:
    for name in ("p0.1", "p1.1"):
        lines[name] += [{"e": "begin", "t": 4.0, "b": 2, "n": 0, "kind": "broadcast"}]
        lines[name] += [failed(4.1, 0, "PeerLost", b=2, intact=name == "p0.1", kind="broadcast")]


def a_boundary_again(lines: Lines) -> None:
    lines["p0.1"].append({"e": "advance", "t": 4.0, "b": 2, "epoch": 2, "s": 0.0})


def in_an_op_before_it_entered(lines: Lines) -> None:
    find(lines, "p1.1", "member")["entered"] = 2


def retries_without_a_change(lines: Lines) -> None:
    find(lines, "p0.1", "end", n=0)["retries"] = 1


def a_slow_advance(lines: Lines) -> None:
    find(lines, "p0.1", "advance", b=1).update(t=1.5 - 0.1, s=2.5)


def evicted_for_a_link(lines: Lines) -> None:
    lines["driver"] += fault("cut", "p1.1", 4.0, 7.0)
    evict(lines)


def coordinator_lost(lines: Lines) -> None:
    lines["p1.1"].append({"e": "gone", "t": 6.0, "error": "CoordinatorLost", "text": "silent"})


def a_timeout(lines: Lines) -> None:
    for name in ("p0.1", "p1.1"):
        lines[name] += [{"e": "begin", "t": 4.0, "b": 2, "n": 0, "kind": "barrier"}, failed(7.0, 0, "Timeout", b=2)]


def no_end(lines: Lines) -> None:
    lines["p0.1"].append({"e": "begin", "t": 4.0, "b": 2, "n": 0, "kind": "barrier"})


def not_let_in(lines: Lines) -> None:
    lines["p3.1"] = [{"e": "refused", "t": 5.0, "error": "Timeout", "text": "no epoch"}]


def evicted_while_it_joined(lines: Lines) -> None:
    lines["p3.1"] = [{"e": "refused", "t": 5.0, "error": "Evicted", "text": "lease"}]


def stuck(lines: Lines) -> None:
    lines["driver"].append({"e": "stuck", "t": 5.0, "name": "p0.1", "why": "silent", "boundary": 2})


def crashed(lines: Lines) -> None:
    find(lines, "driver", "ended", name="p1.1")["code"] = -11


def drifted(lines: Lines) -> None:
    find(lines, "p1.1", "sync")["exact"] = False


def another_state(lines: Lines) -> None:
    find(lines, "p1.1", "sync")["digest"] = "e"


def grows(lines: Lines) -> None:
    find(lines, "driver", "calm")["t"] = 1000.0
    lines["driver"] += [{"e": "usage", "t": 65.0 + 5 * k, "of": {"p0.1": [40 + k, 100000]}} for k in range(100)]


def grows_in_memory(lines: Lines) -> None:
    """A leak of 200 KiB a sample, under buffers that come and go."""
    find(lines, "driver", "calm")["t"] = 1000.0
    rss = [100000 + 200 * k + 30000 * (k % 3) for k in range(100)]
    lines["driver"] += [{"e": "usage", "t": 65.0 + 5 * k, "of": {"p0.1": [40, kb]}} for k, kb in enumerate(rss)]


PLANTED = [
    ("P1", another_digest),
    ("P1", other_participants),
    ("P1", one_failed),
    ("P1", a_survivor_lacks_it),
    ("P1", never_called),
    ("P1", wrong_bytes),
    ("P6", wrong_bytes_and_corruption),
    ("P2", input_changed),
    ("P3", a_boundary_again),
    ("P3", in_an_op_before_it_entered),
    ("P3", retries_without_a_change),
    ("P3", a_slow_advance),
    ("P4", evicted_for_a_link),
    ("P7", coordinator_lost),
    ("P5", a_timeout),
    ("P5", no_end),
    ("P5", not_let_in),
    ("P4", evicted_while_it_joined),
    ("P5", stuck),
    ("P6", crashed),
    ("P8", drifted),
    ("P8", another_state),
    ("growth", grows),
    ("growth", grows_in_memory),
]


def judged(lines: Lines) -> list[checker.Broken]:
    return checker.judge(history.build(lines), LEASE_S)


def test_a_run_in_which_every_promise_held() -> None:
    assert not judged(good())


@pytest.mark.parametrize(("promise", "plant"), PLANTED, ids=[plant.__name__ for _, plant in PLANTED])
def test_it_sees(promise: str, plant: Callable[[Lines], None]) -> None:
    lines = good()
    plant(lines)
    assert promise in {broken.promise for broken in judged(lines)}


def test_memory_that_comes_and_goes_is_no_growth() -> None:
    lines = good()
    find(lines, "driver", "calm")["t"] = 1000.0
    rss = [100000 + (60000 if k % 3 and k > 60 else 0) for k in range(100)]
    lines["driver"] += [{"e": "usage", "t": 65.0 + 5 * k, "of": {"p0.1": [40, kb]}} for k, kb in enumerate(rss)]
    assert "growth" not in {broken.promise for broken in judged(lines)}


def test_a_pause_beyond_the_lease_excuses() -> None:
    lines = good()
    lines["driver"] += fault("stop_long", "p1.1", 1.0, 6.5)
    evict(lines)
    lines["p1.1"].append({"e": "gone", "t": 6.6, "error": "Evicted", "text": "lease"})
    find(lines, "driver", "ended", name="p1.1")["code"] = 3
    assert not judged(lines)


def test_a_pause_while_it_joins_excuses_too() -> None:
    lines = good()
    evicted_while_it_joined(lines)
    lines["driver"] += fault("stop_long", "p3.1", 0.0, 4.9)
    assert not judged(lines)


def test_members_hold_for_a_joiner_also_while_the_coordinator_is_dead() -> None:
    lines = good()
    find(lines, "p0.1", "advance", b=2).update(t=7.5, s=2.5)
    assert [broken.promise for broken in judged(lines)] == ["P3"]
    lines["hub.1"].append({"e": "decision", "t": 3.4, "epoch": 2, "peer": "", "what": "hold", "reason": "1 waits"})
    assert not judged(lines)
    lines["hub.1"].append({"e": "decision", "t": 3.45, "epoch": 2, "peer": "", "what": "release", "reason": "gone"})
    assert [broken.promise for broken in judged(lines)] == ["P3"]


def test_who_has_left_may_be_found_out() -> None:
    """It closed without a word from the coordinator, which was away and finds a port that nobody listens at."""
    lines = good()
    lines["hub.1"].append({"e": "decision", "t": 8.95, "epoch": 2, "peer": "bb", "what": "lost", "reason": "refused"})
    find(lines, "driver", "stop")["t"] = 9.0
    assert not judged(lines)
    lines["hub.1"][-1]["t"] = 8.85
    assert [broken.promise for broken in judged(lines)] == ["P4"]


def test_the_report_counts_and_measures(tmp_path: Path) -> None:
    for name, events in good().items():
        text = "".join(json.dumps(event) + "\n" for event in events)
        (tmp_path / f"{name}.jsonl").write_text(text + ('{"e": "beg' if name == "p2.1" else ""))
    found = history.load(tmp_path)
    row = report.figures(found, checker.judge(found, LEASE_S), 7, "again", "")
    assert (row["commits"], row["retries"], row["kills"], row["joins"], row["broken"]) == (5, 2, 1, 3, [])
    assert row["recovery_ms"] == {"max": 500.0}


# -- what the peers check themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", contents.PEAKS)
@pytest.mark.parametrize(("redop", "fold"), [("sum", np.add), ("max", np.maximum), ("min", np.minimum)])
def test_one_wrong_element_of_a_result_is_seen(dtype: str, redop: str, fold: Any) -> None:
    peers = [bytes([k]) * 16 for k in range(8)]
    op = contents.Op(3, "all_reduce", 80000, dtype, redop)
    total = functools.reduce(fold, [contents.contribution(peer, 5, op) for peer in peers])
    assert not contents.wrong_reduction(op, peers, 5, total)
    assert not contents.wrong_reduction(op, peers, 5, total[9000:], offset=9000)
    assert contents.wrong_reduction(op, peers[1:], 5, total)
    total[9000] += 1
    assert "the first at 9000" in contents.wrong_reduction(op, peers, 5, total)


def test_ops_and_contributions_are_the_same_everywhere_and_differ_between_peers() -> None:
    assert contents.ops_of(1, 7) == contents.ops_of(1, 7)
    op = contents.ops_of(1, 7)[0]
    first, second = (contents.contribution(bytes([k]) * 16, 7, op) for k in range(2))
    assert first.tobytes() == contents.contribution(bytes(16), 7, op).tobytes() != second.tobytes()
