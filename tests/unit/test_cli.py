"""The command line's own logic: units, steps, secrets, benchmark arithmetic, the status page. Starts no process."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from pccl import messages
from pccl.cli import COMMANDS, bench, bench_worker, main, status
from pccl.cli._fleet import LineReader
from pccl.cli._run_options import read_secret
from pccl.cli._units import ListOf, format_age, format_bytes, format_ms
from pccl.cli.launch import Steps, default_min_peers, peer_environment, run_boundary
from pccl.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("1KiB", 1024), ("64 MiB", 64 << 20), ("1.5k", 1536), ("1MB", 10**6), ("2GiB", 2 << 30)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "KiB", "1 apple", "-3", "1e6"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_numbers_are_shown_with_the_digits_that_mean_something() -> None:
    assert [format_bytes(n) for n in (1, 1024, 64 << 20, 3 << 30)] == ["1 B", "1 KiB", "64 MiB", "3 GiB"]
    assert [format_ms(ms) for ms in (None, 0.1234, 12.345, 1234.5)] == ["-", "0.123", "12.35", "1234"]
    assert [format_age(s) for s in (0.02, 2.5, 75)] == ["20 ms", "2.5 s", "1 min 15 s"]


def test_lists_hold_positive_numbers() -> None:
    assert ListOf("sizes").convert("1KiB,2MiB", None, None) == [1024, 2 << 20]
    assert ListOf("integers").convert("2,4", None, None) == [2, 4]
    with pytest.raises(click.BadParameter):
        ListOf("integers").convert("2,0", None, None)


@pytest.mark.parametrize("name", [*COMMANDS, "bench all-reduce"])
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(main, [*name.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_the_list_of_commands_is_that_of_the_modules() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert all(name in result.output for name in COMMANDS)
    assert CliRunner().invoke(main, ["nonsense"]).exit_code == 2


def test_version_names_package_wire_and_kernels() -> None:
    for arguments in (["version"], ["--version"]):
        output = CliRunner().invoke(main, arguments).output
        assert "pccl 0." in output
        assert "wire version 1" in output
        assert "kernels " in output


def test_steps_come_due_once_and_joins_before_kills() -> None:
    steps = Steps(kill=[5, 9], join=[5])
    assert steps.due(4) == []
    assert steps.due(6) == [("join", 5), ("kill", 5)]
    assert steps.due(6) == []
    assert steps
    assert steps.due(100) == [("kill", 9)]
    assert not steps


def test_min_peers_leaves_room_for_the_planned_losses() -> None:
    assert [default_min_peers(4, kills) for kills in (0, 1, 9)] == [4, 3, 1]


def test_the_furthest_member_says_where_the_run_is() -> None:
    def group(*boundaries: int) -> SimpleNamespace:
        return SimpleNamespace(members=[SimpleNamespace(boundary=b) for b in boundaries])

    status = SimpleNamespace(groups=[group(3, 4), group(), group(7)])
    assert run_boundary(status) == 7  # type: ignore[arg-type]


def test_peers_find_the_run_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    env = peer_environment("tcp://127.0.0.1:1", "r", "s")
    assert (env["PCCL_COORDINATOR"], env["PCCL_RUN"], env["PCCL_SECRET"]) == ("tcp://127.0.0.1:1", "r", "s")
    assert env["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert peer_environment("a", "r", "s")["OMP_NUM_THREADS"] == "1"


def test_the_secret_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCCL_SECRET", "from the environment")
    assert read_secret(None) == "from the environment"
    path = tmp_path / "secret"
    path.write_text("from the file\n")
    path.chmod(0o600)
    assert read_secret(path) == "from the file"
    path.write_text("\n")
    with pytest.raises(click.UsageError, match="empty"):
        read_secret(path)


def test_no_command_takes_a_secret_as_an_argument() -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert "--secret" not in [option for parameter in command.params for option in parameter.opts]


def test_lines_are_cut_from_what_arrives() -> None:
    read_end, write_end = os.pipe()
    lines: list[bytes] = []
    with open(read_end, "rb", buffering=0) as pipe:
        reader = LineReader(pipe, lines.append)
        assert reader.read() is None
        os.write(write_end, b"one\ntw")
        assert reader.read() == 6
        os.write(write_end, b"o\nthree")
        os.close(write_end)
        reader.finish()
    assert lines == [b"one\n", b"two\n", b"three\n"]


def test_a_comparison_under_two_congestion_controls_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = tmp_path / "default"
    default.write_text("bbr\n")
    monkeypatch.setattr(bench, "CONGESTION_FILE", default)
    bench.check_congestion("bbr", "gloo")
    bench.check_congestion("cubic", None)
    bench.check_congestion(None, "gloo")
    with pytest.raises(click.UsageError, match=r"default, bbr.*unshare.*congctl cubic"):
        bench.check_congestion("cubic", "gloo")


def test_a_time_is_the_median_of_the_slowest_peer() -> None:
    gathered = bench.Gathered(2)
    for ours, gloo in (([1.0, 5.0, 2.0], [4.0, 4.0, 4.0]), ([2.0, 1.0, 1.0], [8.0, 1.0, 1.0])):
        line = {"bytes": 1024, "samples": {"ours": ours, "gloo": gloo, "fused": [0.5, 0.5, ours[2] / 4]}}
        assert gathered.complete == []
        gathered.sink(0, False, json.dumps(line).encode())
    assert gathered.complete == [1024]
    row = bench.row_of(gathered, 1024, {"dtype": "float32", "in_place": False, "in_flight": 1})
    assert (row["ours_ms"], row["gloo_ms"], row["ratio"]) == (2.0, 4.0, 0.5)
    assert (row["ours_ops_per_s"], row["iterations"], row["peers"]) == (500.0, 3, 2)
    assert (row["fused_ms"], row["fused_gain"]) == (0.5, 4.0)


def test_larger_sizes_get_fewer_iterations() -> None:
    counts = [bench_worker.iterations_for(1 << shift, 1) for shift in range(10, 31)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] >= 5
    assert bench_worker.iterations_for(1024, 64) >= 50


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
@pytest.mark.parametrize("count", [1, 1000, bench_worker.TILE * 3 + 5])
def test_the_benchmark_sees_wrong_sums(dtype: str, count: int) -> None:
    arrays = bench_worker.NumpyArrays(dtype)
    parts = [arrays.empty(count) for _ in range(3)]
    for index, part in enumerate(parts):
        bench_worker.Pattern(arrays, 3, index).fill(part)
    total = parts[0] + parts[1] + parts[2]
    pattern = bench_worker.Pattern(arrays, 3, 0)
    pattern.check(total, whole=True, what="test")
    pattern.check(total, whole=False, what="test")
    with pytest.raises(SystemExit, match="wrong sum"):
        pattern.check(parts[0], whole=False, what="test")
    total[count // 2] += 1
    with pytest.raises(SystemExit, match="wrong sum"):
        pattern.check(total, whole=True, what="test")


def example_status() -> messages.Status:
    def peer(number: int, rank: int) -> messages.PeerStatus:
        return messages.PeerStatus(
            bytes([number] * 16), rank, "host[bold]", 100 + number, "127.0.0.1:5", 0, 7, 2, 12.5, 3e6, 0.25, True
        )

    entry = messages.LogEntry(3.0, 2, bytes([9] * 16), "out", "control connection closed; EOF seen by 01010101")
    group = messages.GroupStatus(
        0, "STABLE", 2, 0, 2, 3, messages.Plan(1, 262144, 1 << 20), (peer(1, 0), peer(2, 1)), (peer(3, -1),), (entry,)
    )
    return messages.Status(messages.VERSION, "demo", 61.0, 0, (group,))


def test_the_status_page_shows_peers_and_reasons() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(status.page(example_status()))
    text = out.getvalue()
    for expected in ("run demo", "STABLE", "epoch 2", "01010101", "waits", "host[bold]", "12.5", "3.0", "EOF seen by"):
        assert expected in text
    assert "2 peers (at least 2)" in text


def test_the_status_says_what_all_reduces_take_by_their_size() -> None:
    def words(one_round: int, mesh: int) -> str:
        return status.sizes_of(messages.Plan(1, 64, mesh, one_round_bytes_max=one_round))

    assert words(0, 1 << 20) == "mesh up to 1 MiB"
    assert words(64 << 10, 1 << 62) == "one round up to 64 KiB, mesh"


def test_the_status_as_json_has_names_and_hex() -> None:
    found = json.loads(json.dumps(messages.plain(example_status())))
    group = found["groups"][0]
    assert found["run"] == "demo"
    assert group["members"][1]["peer"] == "02" * 16
    assert group["members"][1]["rank"] == 1
    assert group["plan"]["streams"] == 1


def test_nobody_there_is_an_error_that_says_so() -> None:
    result = CliRunner().invoke(main, ["status", "tcp://127.0.0.1:1", "--timeout", "0.2"])
    assert result.exit_code == 1
    assert "no answer from tcp://127.0.0.1:1" in result.output
    assert CliRunner().invoke(main, ["status", "http://x"]).exit_code == 2
