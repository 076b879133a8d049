"""docs/performance.md is what the generator makes of the rows in docs/measured: a figure has no other way there."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("yaml", reason="PyYAML is not installed")
pytest.importorskip("zstandard", reason="zstandard is not installed")

from stress import measured, performance_page
from stress.kv.wan import Runs
from stress.measured import Measured, MeasuredError
from stress.performance_page import PICTURES, SECTION, page, stale, update
from stress.performance_tables import TABLES
from stress.scale import planning
from stress.wan.transfers import __main__ as transfers
from stress.weights import bytes as weights_bytes
from stress.weights import end_to_end, synthetic

HOST = {"cpu": "Some CPU", "cores": 2, "memory_gib": 7.8, "kernel": "6.1", "python": "3.11"}
MIB = 1 << 20


def found(step: str, *rows: dict[str, Any]) -> dict[str, Measured]:
    return {step: Measured(step, f"run {step}", "2026-11-27", "abc123", HOST, list(rows))}


def shown(name: str, of: dict[str, Measured]) -> str:
    """What stands on the page under a mark."""
    return page(f"<!-- measured: {name} -->\nold\n<!-- end -->\n", of)


# -- the page that is committed --------------------------------------------------------------------------------------


def test_the_page_is_that_of_the_rows() -> None:
    assert stale() == [], "python -m stress.performance_page"


def test_every_table_and_picture_is_on_the_page_once() -> None:
    text = performance_page.PAGE.read_text()
    marks = [mark["name"] for mark in SECTION.finditer(text)]
    assert sorted(marks) == sorted([*TABLES, *PICTURES])
    assert text.count("<!-- measured:") == text.count("<!-- end -->") == len(marks)


def test_prose_has_no_figures() -> None:
    """Numbers of what is set up are words there, or stand in commands and tables."""
    prose = SECTION.sub("", performance_page.PAGE.read_text())
    assert "gloo" in prose and not re.search(r"\d\.\d|\d %|\d+ ?(ms|s|Gbit|Mbit|GB|MiB)\b", prose)


# -- what it is made of ----------------------------------------------------------------------------------------------


TORCH = {
    "op": "torch_all_reduce",
    "ranks": 2,
    "mib": 64,
    "native_ms": 20.5,
    "torch_ms": 21.25,
    "gloo_ms": None,
    "ratio": 1.037,
}


def test_a_table_says_where_its_figures_are_from() -> None:
    text = shown("torch", found("torch", TORCH))
    assert "| 64 | 2 | 20.50 | 21.25 |  | 1.04 |\n" in text and "old" not in text
    assert "`run torch`: 2026-11-27, commit abc123; 2 cores of Some CPU, 7.8 GiB, Linux 6.1." in text
    assert "1.05" in shown("torch", found("torch", TORCH | {"ratio": 1.0454}))
    unknown = {"torch": dataclasses.replace(found("torch", TORCH)["torch"], host={})}
    assert "the machine was not recorded" in shown("torch", unknown)


def test_what_was_not_run_is_said() -> None:
    assert "*Not run yet: all of it (step `torch` of `make bench`).*" in shown("torch", {})
    assert "*Not run yet: int8, e3m0 (step `wan`" in shown("wan codecs", {})
    assert "Not run yet" in shown("all_reduce.svg", {}) and "![" not in shown("all_reduce.svg", {})
    fault = {"kind": "fault", "scenario": "link_cut", "figures": {"usual_s": 1.25, "fault_s": None}}
    text = shown("wan faults", found("wan", fault))
    assert "| link_cut | 1.25 |  |" in text and re.search(r"Not run yet: (?!.*link_cut).*, .*\(step", text)


def test_marks_of_nothing_are_refused() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        shown("nonsense", {})


class Network:
    """In place of processes on a WAN."""

    def push(self, *_: Any, **__: Any) -> dict[str, float]:
        return {"s": 2.5, "wire_bytes": 64 * MIB}

    def raw(self, *_: Any) -> float:
        return 2.4


def rows_of(step: str) -> list[dict[str, Any]]:
    """As its program makes them."""
    network = {"rtt_ms": 80.0, "loss": 1e-4, "rate_mbit": 500.0}
    if step == "plans":
        return list(planning.rows([8], [64 * MIB], 1, 1, "cities"))
    if step == "transfers":
        fetch = {"seconds": 4.6, "first_s": 0.2, "retries": 0}
        return [transfers.row_of({**network, "bytes": 256 * MIB, "sources": 1}, MIB, [fetch])]
    if step == "weights":
        options = {**network, "mib": 64, "codecs": "fast", "threads": 1, "density": 0.008}
        times = dict.fromkeys(("encode_s", "written_s", "durable_s", "stage_s", "commit_s"), 0.1)
        fan = {
            **times,
            "bytes": 2 * MIB,
            "changed": 1e6,
            "dense_bytes": 64 * MIB,
            "seconds": [0.4],
            "sent_bytes": 2 * MIB,
        }
        return [end_to_end.row_of(options, 0, [fan]), *end_to_end.others_of(options)]
    if step == "weights_bytes":
        return [weights_bytes.row("synthetic", *synthetic.pair(1 << 16, 0.01))]
    runs = Runs(Network(), {**network, "congestion": "bbr"}, 1, 256 * MIB)  # type: ignore[arg-type]
    return [*runs.shares((65536,), (1, 4)), *runs.codecs()]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("plans", "| 8 | "),
        ("transfers", "| 1 MiB | 80 | 0.01 | 500 | 4.6 | 0.9"),
        ("weights", "| 64 | 0.8 | 80 | 0.01 | 500 | 0 | 1 | 2 MiB | 32 | 0.4 |"),
        ("weights others", "| dense | 64 | 64 MiB | "),
        ("weights bytes", "| synthetic | 1"),
        ("kv wan", "| 80 | 0.01 | 500 | 64 KiB | 859 | 0.96 |"),
        ("kv wan codecs", "| 80 | 0.01 | 500 | raw | 2.5 | 1 | 0.25 |"),
    ],
)
def test_tables_know_the_rows_of_their_programs(name: str, line: str) -> None:
    step = TABLES[name].step
    assert line in shown(name, found(step, *rows_of(step)))


def test_of_a_kernel_the_best_is_shown() -> None:
    rows = [
        {"kernel": "float32 sum", "isa": isa, "sources": sources, "bytes": nbytes, "gb_per_s": speed}
        for isa, sources, nbytes, speed in (
            ("scalar", 2, 1024, 3.0), ("avx2", 2, 1024, 21.0), ("avx2", 3, 1024, 99.0), ("scalar", 2, MIB, 2.0),
            ("avx2", 2, MIB, 7.0),
        )
    ]  # fmt: skip
    text = shown(
        "kernels", found("kernels", *rows, {"kernel": "int8 encode", "isa": "avx2", "bytes": 4096, "gb_per_s": 9.0})
    )
    assert (
        "| float32 sum | avx2 | 21.0 (1 KiB) | 7.0 (1 MiB) |" in text
        and "| int8 encode | avx2 | 9.0 (4 KiB) |  |" in text
    )


# -- files -----------------------------------------------------------------------------------------------------------


def test_rows_are_kept_a_line_each(tmp_path: Path) -> None:
    (made,) = found("torch", TORCH, TORCH | {"mib": 1}).values()
    measured.write(tmp_path, made)
    assert measured.read(tmp_path) == {"torch": made}
    assert len((tmp_path / "torch.json").read_text().splitlines()) == 7 + 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "torch.json: "),
        ("[1]", "torch.json: "),
        ('{"step": "torch"}', "torch.json: .*missing"),
        ('{"step": "kv", "command": "", "date": "", "commit": "", "host": {}, "rows": [{}]}', "torch.json says .*'kv'"),
        (
            '{"step": "torch", "command": "", "date": "", "commit": "", "host": {}, "rows": []}',
            "torch.json has no rows",
        ),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "torch.json").write_text(text)
    with pytest.raises(MeasuredError, match=message):
        measured.read(tmp_path)


def test_the_machine_is_described() -> None:
    here = measured.here()
    assert here["cores"] >= 1 and here["memory_gib"] > 0 and here["cpu"] and here["kernel"]
    assert measured.cpu_of("processor: 0\nmodel name\t: X 9\n") == "X 9" and measured.cpu_of("processor: 0\n")


def test_what_its_host_took_of_a_virtual_machine() -> None:
    before = measured.Processors.of("cpu  100 1 50 1000 7 2 3 10 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert before == measured.Processors(wanted=166, stolen=10)
    after = measured.Processors.of("cpu  160 1 70 1900 9 2 3 30 0 0\n")
    assert after.stolen_percent(before) == 20.0 and before.stolen_percent(before) == 0
    assert measured.Processors.now().wanted > 0
    rows = found("tcp", {"peers": 2})["tcp"]
    assert "took" not in performance_page.caption(dataclasses.replace(rows, host=measured.here()))
    taken = dataclasses.replace(rows, host={**measured.here(), "stolen_percent": 6.1})
    assert "whose host took 6.1 % of what was wanted" in performance_page.caption(taken)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with a table and a picture, and rows for both."""
    (tmp_path / "plots").mkdir()
    marks = "".join(f"<!-- measured: {name} -->\n<!-- end -->\n" for name in ("tcp", "all_reduce.svg"))
    (tmp_path / "performance.md").write_text(f"# Prose\n{marks}more of it\n")
    monkeypatch.setattr(performance_page, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(performance_page, "PLOTS", tmp_path / "plots")
    monkeypatch.setattr(performance_page, "FOLDER", tmp_path / "measured")
    keep(tmp_path, 0.4)
    return tmp_path


def keep(site: Path, ms: float) -> None:
    rows = [{"peers": 2, "bytes": nbytes, "ours_ms": ms * nbytes, "gloo_ms": ms, "ratio": 1} for nbytes in (1, 1024)]
    measured.write(site / "measured", found("tcp", *rows)["tcp"])


def test_what_is_written_is_current_until_a_row_or_the_page_changes(site: Path) -> None:
    picture, text = site / "plots" / "all_reduce.svg", site / "performance.md"
    assert stale() == [text, picture]
    update()
    assert stale() == [] and text.read_text().endswith("more of it\n") and "<svg" in picture.read_text()
    before = picture.read_bytes()
    update()
    assert picture.read_bytes() == before
    text.write_text(text.read_text().replace("0.400", "0.300"))
    assert stale() == [text]
    keep(site, 0.5)
    assert stale() == [text, picture]
    update()
    (site / "measured" / "tcp.json").unlink()
    assert stale() == [text, picture]
    update()
    assert stale() == [] and not picture.exists() and "![" not in text.read_text()


def test_a_picture_by_another_matplotlib_is_current_if_its_rows_are(site: Path) -> None:
    update()
    picture = site / "plots" / "all_reduce.svg"
    drawn = picture.read_text()
    picture.write_text(drawn.replace('d="M', 'd="L', 1))
    assert stale() == [picture]
    picture.write_text(re.sub(r"Matplotlib v[\w.]+", "Matplotlib v1.0", drawn).replace('d="M', 'd="L', 1))
    assert stale() == []
    keep(site, 0.5)
    assert picture in stale()


def test_the_command_line_says_what_is_stale(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(performance_page, "ROOT", site)
    monkeypatch.setattr(sys, "argv", ["performance_page", "--check"])
    assert performance_page.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "not that of the rows: performance.md", "not that of the rows: plots/all_reduce.svg",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["performance_page"])
    assert performance_page.main() == 0 and stale() == []
    (site / "measured" / "kv.json").write_text("{")
    assert performance_page.main() == 2 and "kv.json" in capsys.readouterr().err


def test_this_page_s_rows_have_units() -> None:
    """A number that is a time, a rate or a size says so in its key."""
    bare = re.compile(r"^(seconds|time|rate|speed|size|block|write|read|took)$")
    for step, of in measured.read(measured.FOLDER).items():
        assert not [key for row in of.rows for key in row if bare.match(key)], step
