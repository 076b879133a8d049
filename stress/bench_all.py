"""bench_all.py - every benchmark after the other, and at the end a table of what was wanted and what was found.

    python stress/bench_all.py --out build/bench --rows docs/measured [--rounds 5] [--only wan,kernels] [--quick]

What a step prints goes to OUT/STEP.jsonl, and what it says besides to the screen; rows of a step that ended well also
become ROWS/STEP.json, with date, host and commit, for the page that `performance_page.py` makes. A step that fails, or
cannot run here, does not keep the others from running, and what it found before stays. Exit code 1: a step failed.
Targets that are missed only show in the table: they are for the machine they were made for. Wants the machine for
itself for an hour or more; with --quick, which leaves out most, for some minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import measured
from goals import GOALS, Row

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SIZES = "1KiB,64KiB,1MiB,16MiB,64MiB"
VERDICT = {True: "yes", False: "NO", None: "not measured"}


def steps(out: Path, rounds: int) -> dict[str, list[str]]:
    """Command lines, by name."""
    bench = ["pccl", "bench", "all-reduce", "--peers", "2,4", "--json"]
    all_reduce = [*bench, "--vs", "gloo"]
    wan = ["--rounds", str(rounds), "--json", "--no-limits", "--if-possible", "--out", str(out)]
    stream = ["--rounds", str(rounds), "--json", "--no-limits"]
    return {
        "tcp": [*all_reduce, "--sizes", SIZES, "--transport", "tcp"],
        "shm": [*all_reduce, "--sizes", SIZES],
        "in_flight": [*all_reduce, "--sizes", "1KiB", "--in-flight", "64", "--transport", "tcp"],
        "fused": [*bench, "--sizes", "1KiB,8KiB,64KiB", "--in-flight", "200", "--fused", "--transport", "tcp"],
        "transfer": ["pccl", "bench", "transfer", "--json"],
        "kernels": ["make", "--silent", "-C", "csrc", "bench-kernels", "JSON=1"],
        "kill": ["python", "stress/kill_bench.py", "--trials", str(4 * rounds), "--json", "--no-limits"],
        "join": ["python", "stress/join_bench.py", "--trials", str(2 * rounds), "--mib", "1", "--json"],
        "torch": [*module("torch_bench"), "--rounds", str(3 * rounds), "--gloo", "--json"],
        "kv": [*module("kv.loopback"), *stream],
        "kv_codecs": [*module("kv.codecs"), "--rounds", str(rounds), "--json"],
        "weights_bytes": [*module("weights.bytes"), "--json"],
        "weights_speed": [*module("weights.speed"), "--json"],
        "plans": [*module("scale_sim"), "plan", "--json"],
        "coordinator": [*module("scale_sim"), "coordinator", "--json"],
        "wan": [*module("wan.bench"), *wan],
        "transfers": [*module("wan.transfers"), "--json", "--if-possible", "--wanted", "0", "--rounds", str(rounds)],
        "state": [*module("state_bench"), "--json", "--no-limits"],
        "weights": [*module("weights.end_to_end"), *stream],
        "kv_wan": [*module("kv.wan"), *stream],
        "optim": [*module("optim.convergence"), "--seeds", "1", "--watch-every", "40", "--json"],
    }


def module(name: str) -> list[str]:
    """How a program of this directory is run."""
    return ["python", "-m", f"stress.{name}"]


#: The steps of --quick, with other values of their options, so that each takes a minute at most.
QUICK: dict[str, dict[str, str]] = {
    **{key: {} for key in ("tcp", "shm", "transfer", "kernels")},
    **{key: {"--iters": "30"} for key in ("in_flight", "fused")},
    **{key: {"--trials": "10"} for key in ("kill", "join")},
    "torch": {"--rounds": "15"},
    **{key: {"--rounds": "3"} for key in ("kv", "kv_codecs")},
    "wan": {"--scenarios": "pair", "--rounds": "3", "--gloo-rounds": "1", "--settle": "8"},
}


def with_options(command: list[str], options: dict[str, str]) -> list[str]:
    """The command line with these values, in place of others if it has some."""
    made = list(command)
    for name, value in options.items():
        if name in made:
            made[made.index(name) + 1] = value
        else:
            made += [name, value]
    return made


def argv_of(command: list[str]) -> list[str]:
    """The command line with the programs of this environment."""
    known = {"python": sys.executable, "pccl": str(BIN / "pccl")}
    return [known.get(command[0], command[0]), *command[1:]]


def in_words(command: list[str]) -> str:
    """As a reader types it, in the root of a checkout."""
    return " ".join(word.replace(f"{ROOT}/", "") for word in command)


def run(name: str, command: list[str], out: Path) -> tuple[list[Row], bool]:
    """(the rows that it printed, whether it ended well)."""
    print(f"== {name}: {in_words(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(argv_of(command), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if name != "wan":  # it keeps its own
        (out / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if done.returncode:
        print(f"== {name} ended with {done.returncode}", file=sys.stderr, flush=True)
    return [json.loads(line) for line in lines], done.returncode == 0


def show(judged: list[Row], out: Path) -> None:
    """The table, on the screen and in OUT/goals.txt."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What was wanted", title_justify="left")
    for heading in ("step", "what", "wanted", "found", "so"):
        table.add_column(heading, justify="right" if heading in ("wanted", "found") else "left", no_wrap=True)
    for row in judged:
        found = "-" if row["found"] is None else f"{row['found']:.4g}"
        table.add_row(row["step"], row["what"], row["wanted"], found, VERDICT[row["ok"]])
    Console().print(table)
    with (out / "goals.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=120).print(table)


def chosen(known: dict[str, list[str]], only: str, quick: bool) -> dict[str, list[str]]:
    """The steps that are to be run. ValueError: there is no such step."""
    if quick:
        known = {name: with_options(known[name], options) for name, options in QUICK.items()}
    wanted = only.split(",") if only else list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"no such step: {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in wanted}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rows", type=Path, help="where rows are kept with date, host and commit")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each WAN scenario; trials go with it")
    parser.add_argument("--only", default="", help="steps, separated by commas")
    parser.add_argument("--quick", action="store_true", help="steps that take a minute at most, and less of some")
    options = parser.parse_args()
    out = options.out.resolve()
    try:
        wanted = chosen(steps(out, options.rounds), options.only, options.quick)
    except ValueError as error:
        parser.error(str(error))
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, command in wanted.items():
        before = measured.Processors.now()
        found[name] = rows, well = run(name, command, out)
        if options.rows and rows and well:
            measured.write(options.rows, measured.now(name, in_words(command), rows, before))
    show([goal.judge(found[goal.step][0]) for goal in GOALS if goal.step in found], out)
    return int(not all(well for _, well in found.values()))


if __name__ == "__main__":
    sys.exit(main())
