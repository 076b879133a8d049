"""measured.py - what benchmarks found, kept where it can be committed: a file of rows, with when, where and of what.

docs/measured/STEP.json is {"step", "command", "date", "commit", "host", "rows"}; every row is an object on a line of
its own, as the program printed it, with units in its keys. `bench_all.py` writes it, `performance_page.py` reads it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "measured"
FACTS = ("step", "command", "date", "commit", "host")


class MeasuredError(ValueError):
    """A file that is not what it should be; the message names it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one step. `commit`: of what was measured, with "-dirty" if it was not just that; `host`: facts of the
    machine, none if they were not recorded, and what its own host took of its processors meanwhile, if it is virtual.
    """

    step: str
    command: str
    date: str
    commit: str
    host: dict[str, Any]
    rows: list[Row]


def here() -> dict[str, Any]:
    """The machine: processors, memory, kernel, and the versions that matter."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_of(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy") if has(name)},
    }


@dataclass(frozen=True, slots=True)
class Processors:
    """What all processors did since the machine started, in ticks: `wanted` by whatever ran or was ready to, of which a
    virtual machine's host took `stolen` for others.
    """

    wanted: int
    stolen: int

    @classmethod
    def now(cls) -> Processors:
        """So far."""
        return cls.of(Path("/proc/stat").read_text(encoding="utf-8"))

    @classmethod
    def of(cls, stat: str) -> Processors:
        """By the first line of /proc/stat (proc_stat(5))."""
        ticks = [int(word) for word in stat.partition("\n")[0].split()[1:9]]
        _user, _nice, _system, idle, iowait, _irq, _softirq, stolen = ticks
        return cls(sum(ticks) - idle - iowait, stolen)

    def stolen_percent(self, before: Processors) -> float:
        """Of what was wanted since then."""
        wanted = self.wanted - before.wanted
        return round(100 * (self.stolen - before.stolen) / wanted, 1) if wanted else 0.0


def cpu_of(cpuinfo: str) -> str:
    """The processor's name; the architecture's where the kernel does not say it."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, platform.machine())


def has(name: str) -> bool:
    """Whether a distribution is installed."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def commit() -> str:
    """Of the checkout; what was measured before, and is being written, does not make it another one."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "no checkout"


def now(step: str, command: str, rows: Sequence[Row], before: Processors) -> Measured:
    """Measured here between then and now."""
    host = {**here(), "stolen_percent": Processors.now().stolen_percent(before)}
    return Measured(step, command, f"{datetime.now(timezone.utc):%Y-%m-%d}", commit(), host, list(rows))


def write(folder: Path, found: Measured) -> None:
    """In place of what the step found before."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = "\n".join(f'"{name}": {json.dumps(getattr(found, name))},' for name in FACTS)
    rows = ",\n".join(map(json.dumps, found.rows))
    (folder / f"{found.step}.json").write_text(f'{{\n{facts}\n"rows": [\n{rows}\n]\n}}\n', encoding="utf-8")


def read(folder: Path) -> dict[str, Measured]:
    """Every step's, by name. MeasuredError for a file that is none."""
    return {path.stem: _of(path) for path in sorted(folder.glob("*.json"))}


def _of(path: Path) -> Measured:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = Measured(**told)
    except (ValueError, TypeError) as error:
        raise MeasuredError(f"{path.name}: {error}") from error
    if found.step != path.stem:
        raise MeasuredError(f"{path.name} says that it is of the step {found.step!r}")
    if not found.rows or not all(isinstance(row, dict) for row in found.rows):
        raise MeasuredError(f"{path.name} has no rows")
    return found
