"""join_bench.py - a peer joins a busy run: from connect() to its first committed result, and what the others felt.

    python stress/join_bench.py --trials 20 [--mib 64] [--peers 4] [--json]

A trial: a prepared process connects while the others reduce, takes part, and leaves again. Aborted counts the ops that
the others had to start again between its connecting and its first result; exit code 1 if there are any, or if a result
was wrong.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

from peers import PATIENCE_S, Fleet, Process


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--in-flight", type=int, default=1, help="ops in flight per peer")
    parser.add_argument("--mib", type=float, default=64.0, help="size of each op")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def aborted(fleet: Fleet, begin: float, end: float) -> int:
    """Restarts that the peers saw in results of this span of time."""
    return sum(
        record.retries for process in fleet.all for record in process.records.values() if begin <= record.at <= end
    )


def leave(fleet: Fleet, process: Process) -> None:
    """The joiner goes, in order; the others carry on."""
    process.tell()
    process.killed_at = time.monotonic()  # it need not be there any more
    deadline = time.monotonic() + PATIENCE_S
    while not process.ended and time.monotonic() < deadline:
        fleet.poll(0.2)
    process.popen.wait(PATIENCE_S)


def trial(fleet: Fleet) -> tuple[float, float, int]:
    """(ms from connect() to its return, and to the first result; ops that the others had to start again meanwhile)."""
    fleet.prepare()
    fleet.wait_until_together(time.monotonic())
    joiner = fleet.join()
    deadline = time.monotonic() + PATIENCE_S
    while not joiner.records:
        if time.monotonic() > deadline or joiner.ended:
            raise TimeoutError(f"the joiner got no result within {PATIENCE_S:g} s: {fleet.describe()}")
        fleet.poll(0.2)
    first = next(iter(joiner.records.values()))
    fleet.wait_until_together(first.at)
    retries = aborted(fleet, joiner.connect_at, first.at)
    leave(fleet, joiner)
    connected = joiner.connected_at - joiner.connect_at
    return connected * 1000, (first.at - joiner.connect_at) * 1000, retries


def main() -> int:
    options = arguments()
    fleet = Fleet(int(options.mib * (1 << 20)), options.in_flight)
    rows: list[tuple[float, float, int]] = []
    wrong: list[str] = []
    try:
        for _ in range(options.peers):
            fleet.prepare()
            fleet.join()
        for number in range(options.trials):
            rows.append(trial(fleet))
            wrong += fleet.wrong()
            fleet.forget()
            print(f"{number + 1:4d} {rows[-1][0]:7.0f} {rows[-1][1]:7.0f} ms, {rows[-1][2]} aborted", file=sys.stderr)
    finally:
        fleet.close()
    times = [row[1] for row in rows]
    row = {
        "trials": len(rows),
        "wrong": len(wrong),
        "median_connect_ms": round(statistics.median(row[0] for row in rows), 1),
        "median_ms": round(statistics.median(times), 1),
        "worst_ms": round(max(times), 1),
        "aborted": sum(row[2] for row in rows),
        "in_flight": options.in_flight,
        "mib": options.mib,
    }
    print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()))
    return 1 if wrong or row["aborted"] else 0


if __name__ == "__main__":
    sys.exit(main())
