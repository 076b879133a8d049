"""Traces: what a recorder writes and drops, how clocks are aligned, and what is drawn."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from pccl.cli import main
from pccl.errors import ArgumentError
from pccl.trace import chrome, clocks, files, recorder
from pccl.trace.recorder import Recorder
from pccl.trace.records import (
    VERSION,
    Begin,
    Dropped,
    End,
    Epoch,
    Fault,
    Fetch,
    Freeze,
    Link,
    Record,
    Submit,
    Wait,
)

MS = 10**6
S = 10**9
A, B, C = (digit * 32 for digit in "abc")


def begin(peer: str, wall_ns: int = 0, t: int = 0, part: int = 0) -> Begin:
    return Begin(t, wall_ns, "tests", 0, peer, "host", 7, part, VERSION)


def op(number: int, at: int, until: int, row: str = "ops", epoch: int = 1, lane: int = 0) -> list[Record]:
    """An op that was called and has ended well."""
    name = (0, lane, number)
    return [
        Submit(at, number + 1, name, "all_reduce sum float32[8]", row, 32, "MainThread (1)"),
        End(until, number + 1, name, "all_reduce sum float32[8]", row, "ok", epoch, 0, 32, 32, 2, "mesh", until - at),
    ]


def write(path: Path, records: list[Record]) -> None:
    path.write_bytes(msgspec.json.Encoder().encode_lines(records))


def two_peers(shift: int, delay: int, drift_ppm: int = 0, ops: int = 20, every: int = 10 * MS) -> list[files.PeerTrace]:
    """B's wall clock is ahead by `shift` and too quick; it hears of every end a delay later, and A of every other."""

    def moment(peer: str, t: int) -> int:
        return t if peer == A else t + t * drift_ppm // 10**6

    made = []
    for peer, wall in ((A, 1000 * S), (B, 1000 * S + shift)):
        trace = files.PeerTrace(begin(peer, wall))
        trace.records.append(Epoch(moment(peer, 0), 1, 0, 0, (A, B)))
        for number in range(ops):
            late = delay if (number % 2 == 0) == (peer == B) else 0
            at = every * (number + 1)
            trace.records += op(number, moment(peer, at), moment(peer, at + 5 * MS + late))
        made.append(trace)
    return made


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 3 * S, -7200 * S])
def test_clocks_are_aligned_by_ops_within_a_one_way_delay(shift: int) -> None:
    delay = 2 * MS
    peers = two_peers(shift, delay)
    first, second = clocks.align(peers)
    ends = [[r.t for r in peer.records if isinstance(r, End)] for peer in peers]
    for a, b in zip(*ends, strict=True):
        there, here = second.common(peers[1].wall_ns(b)), first.common(peers[0].wall_ns(a))
        assert abs(there - here) <= 2 * delay
    moments = {first.moments, second.moments}
    assert moments == {None, 21}, "20 ops and an epoch"
    assert max(first.within_ns, second.within_ns) <= 2 * delay


def test_a_clock_that_runs_away_is_followed() -> None:
    """200 ppm over an hour are 720 ms."""
    peers = two_peers(5 * S, MS, drift_ppm=200, ops=3600, every=S)
    aligned = clocks.align(peers)
    ends = [[r.t for r in peer.records if isinstance(r, End)] for peer in peers]
    apart = [
        aligned[1].common(peers[1].wall_ns(b)) - aligned[0].common(peers[0].wall_ns(a))
        for a, b in zip(*ends, strict=True)
    ]
    assert max(map(abs, apart)) < 20 * MS, "what the clocks drift apart in a minute"
    times = [aligned[1].common(peers[1].wall_ns(b)) for b in ends[1]]
    assert times == sorted(times)


def test_a_peer_is_aligned_by_way_of_another() -> None:
    """A and C were never there together; both were with B."""
    early, late = (A, B), (B, C)
    traces = {peer: files.PeerTrace(begin(peer, S * number)) for number, peer in enumerate((A, B, C))}
    for peer in early:
        traces[peer].records += [Epoch(0, 1, 0, 0, early), *op(1, MS, 2 * MS)]
    for peer in late:
        traces[peer].records += [Epoch(3 * MS, 2, 1, 1, late), *op(2, 4 * MS, 5 * MS, epoch=2)]
    peers = list(traces.values())
    aligned = clocks.align(peers)
    for t in (2 * MS, 5 * MS):
        assert len({clock.common(peer.wall_ns(t)) for peer, clock in zip(peers, aligned, strict=True)}) == 1


def test_ops_of_equal_names_of_another_run_align_nothing() -> None:
    one, other = two_peers(0, 0)
    other.records = [Epoch(0, 1, 0, 0, (B, C)) if isinstance(r, Epoch) else r for r in other.records]
    aligned = clocks.align([one, other])
    assert sorted(str(clock.moments) for clock in aligned) == ["0", "None"]
    assert aligned[1].common(123) == 123


# -- files -----------------------------------------------------------------------------------------------------------


def test_half_a_last_line_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    write(path, [begin(A), *op(0, 1, 2)])
    with path.open("ab") as file:
        file.write(b'{"e":"submit","t":')
    (trace,) = files.read(files.find([tmp_path]))
    assert [type(record) for record in trace.records] == [Submit, End]
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ArgumentError, match=r"one\.jsonl:4 is no record"):
        files.read([path])


def test_what_is_no_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not exist"):
        files.find([tmp_path / "nowhere"])
    with pytest.raises(ArgumentError, match=r"no \*\.jsonl in"):
        files.find([tmp_path])
    path = tmp_path / "one.jsonl"
    for records, wrong in (
        (op(0, 1, 2), r"one\.jsonl:1 is not the beginning"),
        ([msgspec.structs.replace(begin(A), version=99)], "of version 99"),
        ([], "nothing is written"),
    ):
        write(path, records)
        with pytest.raises(ArgumentError, match=wrong):
            files.read([path])


def test_the_older_file_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [begin(A, t=50, part=4), *op(2, 60, 70)])
    write(tmp_path / "a.older.jsonl", [begin(A, t=10, part=3), *op(1, 20, 30)])
    (trace,) = files.read(files.find([tmp_path]))
    assert trace.begin.part == 3 and [record.t for record in trace.records] == [20, 30, 60, 70]


# -- the recorder ----------------------------------------------------------------------------------------------------


def test_files_stay_bounded_and_hold_the_newest(tmp_path: Path) -> None:
    limit = 64 << 10
    made = Recorder(str(tmp_path), "tests", 0, bytes.fromhex(A), bytes_max=limit)
    made.start()
    made.put(Epoch(0, 1, 0, 0, (A, B)))
    for number in range(2000):
        for record in op(number, number, number + 1):
            made.put(record)
    made.close()
    found = files.find([tmp_path])
    assert len(found) == 2 and limit // 3 < sum(path.stat().st_size for path in found) <= limit
    (trace,) = files.read(found)
    assert trace.begin.part > 0 and isinstance(trace.records[0], Epoch), "who the members are is still known"
    ends = [record.name[2] for record in trace.records if isinstance(record, End)]
    assert ends == list(range(ends[0], 2000)) and made.dropped == 0


def test_what_does_not_fit_is_counted_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk hangs: every record beyond the queue is dropped at once, and the file says how many."""
    free, hangs, write_it = threading.Event(), threading.Event(), Recorder._drain

    def drain(self: Recorder) -> None:
        hangs.set()
        assert free.wait(30)
        write_it(self)

    monkeypatch.setattr(Recorder, "_drain", drain)
    made = Recorder(str(tmp_path), "tests", 0, bytes.fromhex(A), queue_max=10)
    made.start()
    assert hangs.wait(10)
    for record in op(0, 0, 1) * 20:
        made.put(record)
    assert made.dropped == 30
    free.set()
    made.close()
    (trace,) = files.read(files.find([tmp_path]))
    assert len(trace.records) == 11 and isinstance(trace.records[-1], Dropped) and trace.records[-1].count == 30


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"trace: cannot write in .*file"):
        Recorder(str(tmp_path / "file" / "below"), "tests", 0, bytes(16)).start()


def test_a_disk_that_is_full_ends_the_trace_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Recorder, records: list[Record]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Recorder, "_write", full)
    made = Recorder(str(tmp_path), "tests", 0, bytes.fromhex(A))
    made.start()
    made.put(Freeze(1, 1))
    made.close()
    made.put(Freeze(2, 2))
    assert "ends here" in caplog.text and "No space" in caplog.text and made.dropped == 1
    assert recorder.BYTES_MAX == 128 << 20


# -- the picture -----------------------------------------------------------------------------------------------------


def events_of(picture: dict[str, Any], **wanted: Any) -> list[dict[str, Any]]:
    return [event for event in picture["traceEvents"] if all(event.get(k) == v for k, v in wanted.items())]


def test_an_op_is_followed_over_peers() -> None:
    peers = two_peers(3 * S, MS, ops=2)
    picture = chrome.chrome_trace(peers, clocks.align(peers))
    bars = events_of(picture, ph="X", cat="op")
    assert {(bar["pid"], bar["args"]["op"]) for bar in bars} == {(pid, f"0.0.{n}") for pid in (1, 2) for n in (0, 1)}
    assert all(bar["args"]["outcome"] == "ok" and bar["args"]["algorithm"] == "mesh" for bar in bars)
    starts, ends = events_of(picture, ph="s"), events_of(picture, ph="f")
    assert len(starts) == len(ends) == 2
    for start, end in zip(starts, ends, strict=True):
        assert start["id"] == end["id"] and start["pid"] != end["pid"] and start["ts"] <= end["ts"]
    for arrow in (*starts, *ends):
        assert [b for b in bars if b["pid"] == arrow["pid"] and b["tid"] == arrow["tid"] and b["ts"] == arrow["ts"]]
    assert {e["args"]["name"].split(" (")[0] for e in events_of(picture, name="process_name")} == {
        f"peer {peer[:8]}" for peer in (A, B)
    }


def test_bars_of_a_row_never_overlap() -> None:
    trace = files.PeerTrace(begin(A))
    trace.records.append(Epoch(0, 1, 0, 0, (A,)))
    for number, (at, until) in enumerate([(0, 10), (1, 4), (2, 12), (5, 6), (11, 20)]):
        trace.records += op(number, at * MS, until * MS)
    picture = chrome.chrome_trace([trace], clocks.align([trace]))
    rows: dict[int, list[tuple[float, float]]] = {}
    for bar in events_of(picture, ph="X", cat="op"):
        rows.setdefault(bar["tid"], []).append((bar["ts"], bar["ts"] + bar["dur"]))
    assert len(rows) == 3
    for bars in rows.values():
        bars.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(bars))


def test_waits_membership_and_ops_that_never_ended() -> None:
    trace = files.PeerTrace(begin(A))
    submit = op(0, MS, 2 * MS)[0]
    trace.records += [
        Epoch(0, 1, 0, 0, (A, B)),
        submit,
        Freeze(3 * MS, 1),
        Freeze(4 * MS, 1),
        Link(4 * MS, B, "eof"),
        Epoch(9 * MS, 2, 1, 0, (A,), committed=1),
        Fault(9 * MS, "overdue", 1, B),
        Wait(2 * MS, 10 * MS, "wait", 1, "MainThread (1)"),
        Fetch(10 * MS, B, "egone", 17, 4 * MS),
        Dropped(11 * MS, 3),
    ]
    picture = chrome.chrome_trace([trace], clocks.align([trace]))
    (freeze,) = events_of(picture, ph="X", cat="membership")
    assert (freeze["ts"], freeze["dur"]) == (3000.0, 6000.0) and freeze["args"]["committed"] == 1
    (wait,) = events_of(picture, ph="X", cat="wait")
    assert wait["dur"] == 8000.0 and wait["args"]["op"].endswith("0.0.0")
    (fetch,) = events_of(picture, ph="X", cat="fetch")
    assert (fetch["ts"], fetch["dur"], fetch["args"]["bytes"]) == (6000.0, 4000.0, 17)
    (never,) = events_of(picture, ph="X", cat="op")
    assert never["args"]["outcome"].startswith("in flight") and never["ts"] + never["dur"] == 11000.0
    said = [event["name"] for event in events_of(picture, ph="i")]
    assert said == [
        "epoch 1: 2 peers",
        f"link to {B[:8]} down: eof",
        "epoch 2: 1 peers",
        "overdue",
        "3 records dropped",
    ]


def test_tags_without_number_share_a_row() -> None:
    trace = files.PeerTrace(begin(A))
    for number in range(100):
        trace.records += op(number, number * MS, number * MS + 1, row=f"tag {number % 60}", lane=number % 60 + 1)
    picture = chrome.chrome_trace([trace], clocks.align([trace]))
    names = {event["args"]["name"] for event in events_of(picture, name="thread_name")}
    assert "other tags" in names and len(names) == chrome.TAGS_MAX + 1


def test_the_command_merges_files(tmp_path: Path) -> None:
    for peer in two_peers(3 * S, MS):
        write(tmp_path / f"{peer.begin.peer}.jsonl", [peer.begin, *peer.records])
    output = tmp_path / "picture.json"
    done = CliRunner().invoke(main, ["trace", str(tmp_path), "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "the common clock" in done.output and "by 21 moments in common" in done.output
    shifted = [line for line in done.output.splitlines() if "shifted" in line]
    assert len(shifted) == 1 and ("+3000." in shifted[0] or "-3000." in shifted[0] or "2999." in shifted[0])
    assert len(events_of(json.loads(output.read_text()), ph="X", cat="op")) == 40
    nowhere = CliRunner().invoke(main, ["trace", str(tmp_path / "x")])
    assert nowhere.exit_code == 1 and "does not exist" in nowhere.output
