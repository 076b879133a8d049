"""bench_all.py - every benchmark after the other, and at the end a table of what was wanted and what was found.

    python stress/bench_all.py --out build/bench [--rounds 5] [--only wan,kernels]

What a step prints goes to OUT/STEP.jsonl, and what it says besides to the screen. A step that fails, or cannot run
here, does not keep the others from running. Exit code 1: a step failed. Targets that are missed only show in the table:
they are for the machine they were made for. Wants the machine for itself for half an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from goals import GOALS, Row

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SIZES = "1KiB,64KiB,1MiB,16MiB,64MiB"
VERDICT = {True: "yes", False: "NO", None: "not measured"}


def steps(out: Path, rounds: int) -> dict[str, list[str]]:
    """Command lines, by name."""
    bench = [str(BIN / "pccl"), "bench", "all-reduce", "--peers", "2,4", "--json"]
    all_reduce = [*bench, "--vs", "gloo"]
    python = [sys.executable]
    wan = ["-m", "stress.wan.bench", "--rounds", str(rounds), "--json", "--no-limits", "--if-possible"]
    transfers = ["-m", "stress.wan.transfers", "--json", "--if-possible", "--wanted", "0"]
    return {
        "tcp": [*all_reduce, "--sizes", SIZES, "--transport", "tcp"],
        "shm": [*all_reduce, "--sizes", SIZES],
        "in_flight": [*all_reduce, "--sizes", "1KiB", "--in-flight", "64", "--transport", "tcp"],
        "fused": [*bench, "--sizes", "1KiB,8KiB,64KiB", "--in-flight", "200", "--fused", "--transport", "tcp"],
        "transfer": [str(BIN / "pccl"), "bench", "transfer", "--json"],
        "kernels": ["make", "--silent", "-C", "csrc", "bench-kernels", "JSON=1"],
        "kill": [*python, "stress/kill_bench.py", "--trials", str(4 * rounds), "--json", "--no-limits"],
        "join": [*python, "stress/join_bench.py", "--trials", str(2 * rounds), "--mib", "1", "--json"],
        "wan": [*python, *wan, "--out", str(out)],
        "transfers": [*python, *transfers, "--rounds", str(rounds)],
        "plans": [*python, "-m", "stress.scale_sim", "plan", "--json"],
        "coordinator": [*python, "-m", "stress.scale_sim", "coordinator", "--json"],
    }


def run(name: str, command: list[str], out: Path) -> tuple[list[Row], bool]:
    """(the rows that it printed, whether it ended well)."""
    print(f"== {name}: {' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
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


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each WAN scenario; trials go with it")
    parser.add_argument("--only", default="", help="steps, separated by commas")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    known = steps(out, options.rounds)
    wanted = options.only.split(",") if options.only else list(known)
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no such step: {', '.join(unknown)}; there are {', '.join(known)}")
    found = {name: run(name, known[name], out) for name in wanted}
    show([goal.judge(found[goal.step][0]) for goal in GOALS if goal.step in found], out)
    return int(not all(well for _, well in found.values()))


if __name__ == "__main__":
    sys.exit(main())
