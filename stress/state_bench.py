"""state_bench.py - a peer joins a run that trains: how soon has it the state, and what do the others feel?

    python -m stress.state_bench [--mib 1024] [--still] [--json] [--timeline 0.25] [--no-limits]

On the emulated WAN `join_state` (root; stress/wan/README.md): four members with lines of 200 Mbit/s, which pause and
reduce, and a joiner with 1 Gbit/s that calls `join_state`. Each step of the members
changes a part of the state, as much of the weights as the gradient is of, and their momenta: what of that the joiner
has fetched before it must fetch again (`--still`: nothing changes but the number of the step). Then one of a hundred
chunks is wrong at one member. Wanted: the join takes at most 1.25 times what four uplinks take for the state; a step of
the others, while it fetches, at most 1.1 times what it takes otherwise; and one percent moves at most 2 % of the bytes.
Exit code 1 when that is missed, or peers differ in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from stress.line_log import RECEIVED, SENT, LineLog
from stress.wan.emulator import Emulator
from stress.wan.topology import load

SCRIPT = Path(__file__).with_name("state_peer.py")
PORT = 29400
MEMBERS = "abcd"
RATIO_MAX = 1.25  # join_s of ideal_s,
STEP_RATIO_MAX = 1.1  # and step_during_s of step_s
#: Hosts of different names: peers of one host are taken to be near each other.
NAMED_HOST = ("unshare", "--uts", "--", "sh", "-c", 'hostname "$1" && shift && exec "$@"', "sh")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of the state")
    parser.add_argument("--compute", type=float, default=0.3, help="seconds of a step that are no all-reduce")
    parser.add_argument("--gradient-kib", type=int, default=256, help="size of a step's all-reduce")
    parser.add_argument("--still", action="store_true", help="steps of the members do not change their state")
    parser.add_argument("--up-mbit", type=float, default=200.0, help="a member's line; the joiner's is five times that")
    parser.add_argument("--cap-mbit", type=float, help="what members send to joiners; 0: no cap [0.935 of their line]")
    parser.add_argument("--before", type=int, default=12, help="steps before the joiner comes")
    parser.add_argument("--after", type=int, default=4, help="steps after it has come")
    parser.add_argument("--timeout", type=float, default=170.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--timeline", type=float, metavar="S", help="say what each line carried, every so many seconds")
    parser.add_argument("--no-limits", action="store_true", help="report only")
    options = parser.parse_args()
    if options.cap_mbit is None:
        options.cap_mbit = 0.935 * options.up_mbit
    return options


class Process:
    """One peer; `facts`: what it has said."""

    def __init__(self, wan: Emulator, site: str, job: dict[str, Any]) -> None:
        env = {name: text for name, text in os.environ.items() if not name.startswith("PCCL_")}
        command = [*NAMED_HOST, site, sys.executable, str(SCRIPT), json.dumps(job)]
        self.popen = wan.popen(site, command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.popen.stdout:
            with self.changed:
                self.facts.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.facts.append({"ended": True})
            self.changed.notify_all()

    def wait(self, name: str, count: int, timeout: float) -> None:
        """Until it has said so many facts of that name."""

        def there() -> bool:
            return len(self.all(name)) >= count or bool(self.all("ended"))

        with self.changed:
            if not self.changed.wait_for(there, timeout) or len(self.all(name)) < count:
                raise SystemExit(f"a peer did not come to {name} {count}: {self.facts[-3:]}")

    def all(self, name: str) -> list[dict[str, Any]]:
        """Facts of that name."""
        return [fact for fact in self.facts if name in fact]

    def one(self, name: str) -> Any:
        """The value of its only fact of that name."""
        return self.all(name)[0][name]


def run(options: argparse.Namespace) -> tuple[list[Process], Process, LineLog]:
    """Members, joiner, and what their lines carried while it joined; when all is over."""
    topology = load("join_state", up_mbit=options.up_mbit, joiner_mbit=5 * options.up_mbit)
    with Emulator(topology, large_packets=True) as wan:
        coordinator = f"tcp://{wan.address('hub')}:{PORT}"
        pccl = str(Path(sys.executable).with_name("pccl"))
        serve = [pccl, "coordinator", "--bind", coordinator, "--min-peers", "1", "--form-peers", "4", "--insecure"]
        wan.popen("hub", serve)
        common = {
            "coordinator": coordinator,
            "nbytes": options.mib << 20,
            "compute_s": options.compute,
            "gradient_bytes": options.gradient_kib << 10,
            "members": len(MEMBERS),
            "cap_bytes_per_s": int(options.cap_mbit * 1e6 / 8),
            "after": options.after,
            "trains": not options.still,
        }
        jobs = {site: {"role": "member", "listen": f"{wan.address(site)}:0", "spoils": site == "d"} for site in MEMBERS}
        members = [Process(wan, site, common | job) for site, job in jobs.items()]
        job = {"role": "joiner", "listen": f"{wan.address('joiner')}:0", "spoils": False}
        joiner = Process(wan, "joiner", common | job)
        joiner.wait("ready", 1, options.timeout)
        log = LineLog({"joiner": joiner.popen.pid} | {s: p.popen.pid for s, p in zip(MEMBERS, members, strict=True)})
        for process in members:
            process.wait("step", options.before, options.timeout)
        joiner.popen.stdin.write("go\n")
        joiner.popen.stdin.flush()
        joiner.wait("joined", 1, options.timeout)
        log.end()
        for process in [joiner, *members]:
            process.wait("ended", 1, options.timeout)
    return members, joiner, log


def judged(options: argparse.Namespace, members: list[Process], joiner: Process) -> dict[str, Any]:
    """The figures."""
    nbytes = options.mib << 20
    begin = joiner.one("connect")
    before, meanwhile = [], []
    for process in members:
        steps = process.all("step")
        grown = next(i for i, s in enumerate(steps) if s["world"] > len(MEMBERS))
        before += [s["s"] for s in steps[2:] if s["at"] + s["s"] < begin]
        meanwhile += [s["s"] for s in steps[: grown + 1] if s["at"] > begin]
    syncs = {
        what: [s for p in [*members, joiner] for s in p.all("sync") if s["sync"] == what]
        for what in ("join", "one percent")
    }
    digests = {s["digest"] for s in syncs["one percent"]}
    ideal = nbytes * 8 / (len(MEMBERS) * options.up_mbit * 1e6)
    normal, during = statistics.median(before), statistics.median(meanwhile)
    return {
        "mib": options.mib,
        "still": options.still,
        "up_mbit": options.up_mbit,
        "ideal_s": round(ideal, 2),
        "join_s": round(joiner.one("joined"), 2),
        "join_ratio": round(joiner.one("joined") / ideal, 3),
        "join_wanted": RATIO_MAX,
        "cap_mbit": options.cap_mbit,
        "step_s": round(normal, 4),
        "step_during_s": round(during, 4),
        "step_ratio": round(during / normal, 3),
        "step_wanted": STEP_RATIO_MAX,
        "steps_during": len(meanwhile),
        "connect_s": round(joiner.one("connected") - begin, 2),
        "prefetch_s": round(joiner.all("prefetch")[0]["s"], 2),
        "prefetch": joiner.one("prefetch"),
        "prefetched_mib": round(joiner.all("prefetch")[0]["received"] / 2**20, 1),
        "sync_received_mib": round(sum(s["received"] for s in syncs["join"]) / 2**20, 2),
        "sync_s": round(max(s["s"] for p in members for s in p.all("sync") if s["sync"] == "join"), 3),
        "one_percent_moved": round(sum(s["received"] for s in syncs["one percent"]) / nbytes, 4),
        "one_percent_s": round(max(s["s"] for s in syncs["one percent"]), 3),
        "equal": len(digests) == 1 and len(syncs["one percent"]) == len(members) + 1,
    }


def timeline(every_s: float, log: LineLog, joiner: Process) -> str:
    """What the joiner received and each member sent, in Mbit/s with all headers, from its call of connect on."""
    begin = joiner.one("connect")
    columns = {"joiner": RECEIVED} | dict.fromkeys(MEMBERS, SENT)
    found = log.rows(columns, begin, begin + joiner.one("joined"), every_s)
    lines = ["".join(f"{name:>9}" for name in found[0])]
    return "\n".join(lines + ["".join(f"{value:9.2f}" for value in row.values()) for row in found])


def main() -> int:
    options = arguments()
    members, joiner, log = run(options)
    row = judged(options, members, joiner)
    if options.timeline:
        print(timeline(options.timeline, log, joiner), file=sys.stderr)
    print(json.dumps(row) if options.json else "\n".join(f"{name:20} {value}" for name, value in row.items()))
    met = row["join_ratio"] <= RATIO_MAX and row["step_ratio"] <= STEP_RATIO_MAX and row["one_percent_moved"] <= 0.02
    return 0 if row["equal"] and (met or options.no_limits) else 1


if __name__ == "__main__":
    sys.exit(main())
