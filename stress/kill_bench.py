"""kill_bench.py - SIGKILL of one peer at a random moment of in-place all-reduces, again and again, everything checked.

    python stress/kill_bench.py --trials 100 [--in-flight 16 --mib 4] [--peers 4] [--seed 1] [--json]

A trial: all peers reduce; one is killed at a random moment; the time from the kill until every survivor has committed
a result without it is taken; a prepared process joins in its place. Inputs are distinct powers of two, so that each
result shows who took part. Wrong is: survivors of an op that differ in participants, sum or bytes, or lack an op that
another one has. Exit code 1 then, or when the median is 300 ms or more, or the worst 1 s or more (--no-limits: times
are only reported).
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import statistics
import sys
import time

from peers import PATIENCE_S, Fleet, Process

MEDIAN_MS_MAX = 300.0
WORST_MS_MAX = 1000.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=1, help="ops in flight per peer")
    parser.add_argument("--mib", type=float, default=64.0, help="size of each op")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-limits", action="store_true", help="judge results only, not times")
    return parser.parse_args()


def period_s(fleet: Fleet) -> float:
    """How long a step of the loop took lately."""
    times = [record.at for record in fleet.live[0].records.values() if record.name[1] == 0][-6:]
    return statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 2 else 0.3


def kill(fleet: Fleet, chance: random.Random) -> Process:
    """Kills one of the live at a moment that is spread evenly over a step."""
    victim = chance.choice(fleet.live)
    moment = time.monotonic() + chance.random() * period_s(fleet)
    while (left := moment - time.monotonic()) > 0:
        fleet.poll(left)
    victim.killed_at = time.monotonic()
    victim.popen.send_signal(signal.SIGKILL)
    return victim


def recovered_at(process: Process, victim: Process) -> float | None:
    """When the peer committed its first result after the kill without the victim."""
    assert victim.killed_at is not None
    for record in process.records.values():
        if record.at > victim.killed_at and victim.peer not in record.peers:
            return record.at
    return None


def trial(fleet: Fleet, chance: random.Random) -> float:
    """Milliseconds from the kill to the last survivor's first result."""
    fleet.wait_until_together(time.monotonic())
    fleet.prepare()
    victim = kill(fleet, chance)
    assert victim.killed_at is not None
    survivors = fleet.live
    deadline = victim.killed_at + PATIENCE_S
    while any(recovered_at(process, victim) is None for process in survivors):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no recovery within {PATIENCE_S:g} s: {fleet.describe()}")
        if any(process.ended for process in survivors):
            raise RuntimeError(f"a survivor ended: {fleet.describe()}")
        fleet.poll(0.2)
    victim.popen.wait()
    taken = max(recovered_at(process, victim) or 0.0 for process in survivors) - victim.killed_at
    fleet.join()
    return taken * 1000


def run(options: argparse.Namespace) -> tuple[list[float], list[str]]:
    """All trials: times and what was wrong."""
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr)
    chance = random.Random(seed)
    fleet = Fleet(int(options.mib * (1 << 20)), options.in_flight)
    times: list[float] = []
    wrong: list[str] = []
    try:
        for _ in range(options.peers):
            fleet.prepare()
            fleet.join()
        for number in range(options.trials):
            times.append(trial(fleet, chance))
            found = fleet.wrong()
            wrong += found
            fleet.forget()
            print(f"{number + 1:4d} {times[-1]:7.0f} ms {'; '.join(found[:3])}", file=sys.stderr)
        fleet.wait_until_together(time.monotonic())
        wrong += fleet.wrong()
    finally:
        fleet.close()
    return times, wrong


def main() -> int:
    options = arguments()
    times, wrong = run(options)
    row = {
        "trials": len(times),
        "wrong": len(wrong),
        "median_ms": round(statistics.median(times), 1),
        "worst_ms": round(max(times), 1),
        "in_flight": options.in_flight,
        "mib": options.mib,
        "peers": options.peers,
    }
    print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()))
    slow = row["median_ms"] >= MEDIAN_MS_MAX or row["worst_ms"] >= WORST_MS_MAX
    return 1 if wrong or (slow and not options.no_limits) else 0


if __name__ == "__main__":
    sys.exit(main())
