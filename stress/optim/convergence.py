"""convergence.py - does every mode of pccl.optim learn as well as it should, with real peers?

    python -m stress.optim.convergence [--modes diloco,streaming] [--seeds 4] [--json] [--watch-every 20]

The task is that of markov.py: 400 steps, 32 sequences a step, spread over the peers, each a process of one thread on
loopback (peer.py). Per seed, a mode's loss is compared with that of data parallel training on the same batches, in
percent, and with that of a lone worker on a fourth of them. Intervals are two-sided: a mean below 0 would be too good
to be true, and a reduction that silently does not take place ends where the lone worker does. After each round the CRC
of Theta and outer state must be the same on all peers. Rows of JSON say what one peer has sent, and with
--watch-every how the loss fell with that (plot.py draws it). Exit code 1 when something is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stress.optim import markov
from stress.optim.crew import Crew, Told, disagreements
from stress.optim.peer import Job

LONE_SEQUENCES = 8
LEAVE_AFTER, JOIN_AT = 100, 200
SPREAD_MAX = 0.03
PARALLEL_LOSS = (2.06, 2.13)
LONE_GAP = (2.0, 5.0)  # percent

NESTEROV = ["Nesterov", 1.0, 0.5]
H10 = {"every": 10, "outer": NESTEROV}
P3 = {**H10, "mode": "streaming", "fragments": "strided:2"}  # embeddings and head, and each of the two blocks


@dataclass(frozen=True, slots=True)
class Row:
    """A mode and what is wanted of it. `high`: the largest mean gap to data parallel, percent. `near`: the row whose
    mean gap it must be so near, percentage points. `beats_lone`: at every seed. `churn`: one of the peers leaves after
    LEAVE_AFTER steps, a fresh one enters at JOIN_AT."""

    name: str
    options: dict[str, Any]
    high: float
    peers: int = 4
    near: tuple[str, float] | None = None
    beats_lone: bool = True
    churn: bool = False


ROWS = [
    Row("diloco", H10, 2.0),
    Row("diloco-H20", {**H10, "every": 20}, 2.3),
    Row("diloco-H40", {**H10, "every": 40}, 2.6),
    Row("diloco-0.7/0.9", {"every": 10, "outer": ["Nesterov", 0.7, 0.9]}, 3.0),
    Row("diloco-M2", H10, 2.0, peers=2),
    Row("diloco-M8", H10, 2.6, peers=8),
    Row("diloco-int8", {**H10, "codec": "int8"}, 2.0, near=("diloco", 0.2)),
    Row("diloco-e3m0", {**H10, "codec": "e3m0"}, 2.0, near=("diloco", 0.2)),
    Row("diloco-churn", H10, 2.0, churn=True),
    Row("localsgd", {"every": 10, "mode": "localsgd"}, 2.0),
    Row("streaming-t0", {**P3, "overlap": 0}, 2.0),
    Row("streaming-t1", {**P3, "overlap": 1}, 2.5),
    Row("streaming-t1-a.5", {**P3, "overlap": 1, "merge": 0.5}, 2.5),
    Row(
        "streaming-t1-a.5-e3m0",
        {**P3, "overlap": 1, "merge": 0.5, "codec": "e3m0"},
        2.5,
        near=("streaming-t1-a.5", 0.3),
    ),
    Row("streaming-t5-a.5", {**P3, "overlap": 5, "merge": 0.5}, 3.0),
    Row("streaming-churn", {**P3, "overlap": 1, "merge": 0.5, "codec": "e3m0"}, 2.5, churn=True),
    Row("gossip", {"every": 10, "mode": "gossip", "mixing": ["Mixing", 0.5, 0.7, 0.7]}, 2.5),
    Row("delayed", {"every": 10, "mode": "delayed", "outer": ["Average", 0.7]}, 5.0, beats_lone=False),
    Row("eager", {"every": 10, "mode": "eager", "outer": ["Average", 1.0]}, 4.5, beats_lone=False),
    Row("sparse-1.56%", {"every": 10, "mode": "sparse", "sparse": [64, 4096, 0.95]}, 5.0, beats_lone=False),
    Row("sparse-12.5%", {"every": 10, "mode": "sparse", "sparse": [512, 4096, 0.95]}, 3.0),
]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a run came to: `bytes_sent` by one peer, the mean; `watched`: (steps, bytes sent until then, loss)."""

    loss: float
    bytes_sent: float
    watched: list[tuple[int, int, float]]


@dataclass(slots=True)
class Score:
    """What came of a row: per seed its loss, its gap to data parallel in percent, that of the lone worker; `wrong`:
    what peers disagree in."""

    row: Row
    losses: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    lone_gaps: list[float] = field(default_factory=list)
    spread: float = 0.0
    retries: int = 0
    wait_s: float = 0.0
    runs: list[Sent] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def gap(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.gaps)


class Bench:
    """Runs rows; data parallel and lone runs only once for each seed."""

    def __init__(self, crew: Crew, watch_every: int = 0) -> None:
        self._crew, self._watch_every = crew, watch_every
        self.parallels: dict[tuple[int, int], Sent] = {}  # by the number of peers and the seed
        self.lones: dict[int, Sent] = {}
        self.wrong: list[str] = []

    def parallel(self, peers: int, seed: int) -> float:
        """The loss of that many peers that all-reduce gradients at every step."""
        if (peers, seed) not in self.parallels:
            told = self._crew.run(self._jobs("parallel", seed, peers))
            self.wrong += [f"data parallel, seed {seed}: {what}" for what in disagreements(told)]
            self.parallels[peers, seed] = sent_by(told)
        return self.parallels[peers, seed].loss

    def lone(self, seed: int) -> float:
        """The loss of one worker on its share of the batches."""
        if seed not in self.lones:
            job = Job("alone", seed, 0, LONE_SEQUENCES, watch_every=self._watch_every)
            self.lones[seed] = sent_by([self._crew.alone(job)])
        return self.lones[seed].loss

    def _jobs(self, kind: str, seed: int, peers: int, **more: Any) -> list[Job]:
        """Of a whole run; the first peer watches."""
        watch = [self._watch_every] + [0] * (peers - 1)
        return [_job(kind, seed, place, peers, watch_every=watch[place], **more) for place in range(peers)]

    def add(self, score: Score, seed: int) -> None:
        """One run of a row."""
        row, base = score.row, self.parallel(score.row.peers, seed)
        jobs = self._jobs("diloco", seed, row.peers, options=row.options)
        joiner = None
        if row.churn:
            joiner = _job("diloco", seed, row.peers, row.peers, options=row.options)
            jobs = [replace(job, gates=(JOIN_AT - 1,)) for job in jobs[:-1]]
            jobs.append(_job("diloco", seed, len(jobs), row.peers, options=row.options, leave_after=LEAVE_AFTER))
        told = self._crew.run(jobs, joiner)
        wrong = disagreements(told, changes=2 * row.churn) + _churn(row, told)
        score.wrong += [f"seed {seed}: {what}" for what in wrong]
        ends = [one.end for one in told if one.end is not None and "loss" in one.end]
        score.runs.append(sent_by(told))
        score.losses.append(score.runs[-1].loss)
        score.gaps.append(100 * (score.losses[-1] / base - 1))
        score.lone_gaps.append(100 * (self.lone(seed) / base - 1))
        score.spread = max([score.spread, *(end["spread"] for end in ends)])
        score.retries += max(end["retries"] for end in ends)
        score.wait_s += statistics.fmean(end["wait_s"] for end in ends)


def sent_by(told: Sequence[Told]) -> Sent:
    """The loss is that of the first who has one; whether they are equal is for `disagreements`."""
    ends = [one.end for one in told if one.end is not None and "loss" in one.end]
    return Sent(ends[0]["loss"], statistics.fmean(end.get("bytes_sent", 0) for end in ends), told[0].watches)


def _job(kind: str, seed: int, place: int, peers: int, **more: Any) -> Job:
    return Job(kind, seed, place, markov.BATCH // peers, **more)


def _churn(row: Row, told: Sequence[Told]) -> list[str]:
    """Whether the leaver left and the joiner came when they should."""
    if not row.churn:
        return []
    left, joined = told[row.peers - 1].end or {}, told[row.peers].end or {}
    wrong = [] if left.get("left") == LEAVE_AFTER else [f"left: {left}"]
    if not JOIN_AT <= joined.get("entered", 0) < JOIN_AT + row.options["every"]:
        wrong.append(f"joined at step {joined.get('entered')}")
    worlds = {line["peers"] for one in told for line in one.rounds}
    return wrong if worlds == {row.peers - 1, row.peers} else [*wrong, f"rounds of {sorted(worlds)} peers"]


# -- judging -----------------------------------------------------------------------------------------------------------


def missed(score: Score, others: dict[str, Score]) -> list[str]:
    """Why the row is not as it should be."""
    row, why = score.row, list(score.wrong)
    if not 0 < score.gap <= row.high:
        why.append("the gap is not in the interval")
    if row.beats_lone and not all(gap < lone for gap, lone in zip(score.gaps, score.lone_gaps, strict=True)):
        why.append("no better than a lone worker at some seed")
    if row.near is not None and row.near[0] in others:
        apart = score.gap - others[row.near[0]].gap
        if abs(apart) > row.near[1]:
            why.append(f"{apart:+.2f} points from {row.near[0]}, wanted {row.near[1]} at most")
    if score.spread > SPREAD_MAX and row.options.get("mode") == "gossip":
        why.append(f"replicas are {score.spread:.1%} apart, wanted {SPREAD_MAX:.0%} at most")
    return why


def out_of_order(scores: dict[str, Score]) -> list[str]:
    """Whether the gap grows with the number of peers, as it must."""
    growing = [name for name in ("diloco-M2", "diloco", "diloco-M8") if name in scores]
    gaps = [scores[name].gap for name in growing]
    return (
        [] if gaps == sorted(gaps) else [f"the gap must grow with the peers: {dict(zip(growing, gaps, strict=True))}"]
    )


def line_of(score: Score, why: Sequence[str]) -> dict[str, Any]:
    """A row as figures."""
    return {
        "mode": score.row.name, "peers": score.row.peers, "loss": round(statistics.fmean(score.losses), 4),
        "gap_percent": round(score.gap, 3), "gap_sd": round(statistics.pstdev(score.gaps), 3),
        "wanted": [0.0, score.row.high], "spread": round(score.spread, 5), "retries": score.retries,
        "wait_s": round(score.wait_s, 2), **_sent(score.runs), "missed": list(why),
    }  # fmt: skip


def _sent(runs: Sequence[Sent]) -> dict[str, Any]:
    """The means over seeds: bytes and losses."""
    looks = zip(*(run.watched for run in runs), strict=True)
    watched = [
        [at[0][0], round(statistics.fmean(one[1] for one in at)), round(statistics.fmean(one[2] for one in at), 4)]
        for at in looks
    ]
    return {"bytes_sent": round(statistics.fmean(run.bytes_sent for run in runs)), "watched": watched}


def baselines(bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """What the rows are compared with, as rows."""
    together, alone = [bench.parallel(4, seed) for seed in range(seeds)], [bench.lone(seed) for seed in range(seeds)]
    gaps = [100 * (one / other - 1) for one, other in zip(alone, together, strict=True)]
    loss, gap = statistics.fmean(together), statistics.fmean(gaps)
    low, high = PARALLEL_LOSS
    wrong = [] if low <= loss <= high else [f"a loss between {low} and {high} was wanted"]
    rest = {"spread": 0.0, "retries": 0, "wait_s": 0.0}
    return [
        {"mode": "data parallel", "peers": 4, "loss": round(loss, 4), "gap_percent": 0.0, "gap_sd": 0.0,
         "wanted": [0.0, 0.0], **rest, **_sent([bench.parallels[4, seed] for seed in range(seeds)]), "missed": wrong},
        {"mode": "lone worker", "peers": 1, "loss": round(statistics.fmean(alone), 4), "gap_percent": round(gap, 3),
         "gap_sd": round(statistics.pstdev(gaps), 3), "wanted": list(LONE_GAP), **rest,
         **_sent([bench.lones[seed] for seed in range(seeds)]),
         "missed": [] if LONE_GAP[0] <= gap <= LONE_GAP[1] else ["the gap is not in the interval"]},
    ]  # fmt: skip


def in_words(line: dict[str, Any]) -> str:
    """A row for people."""
    low, high = line["wanted"]
    return (
        f"{line['mode']:<24}{line['loss']:8.4f}{line['gap_percent']:+8.2f} ± {line['gap_sd']:4.2f} %  "
        f"{low:+5.2f} to {high:+5.2f} %  {'ok' if not line['missed'] else 'MISSED: ' + '; '.join(line['missed'])}"
    )


def run(rows: Sequence[Row], seeds: int, tell: Callable[[dict[str, Any]], None], watch_every: int = 0) -> list[str]:
    """All rows, at all seeds, and what they are compared with. Tells each; gives what is wrong with them together."""
    scores: dict[str, Score] = {}
    with Crew() as crew:
        bench = Bench(crew, watch_every)
        for line in baselines(bench, seeds):
            tell(line)
        for row in rows:
            scores[row.name] = Score(row)
            for seed in range(seeds):
                bench.add(scores[row.name], seed)
            tell(line_of(scores[row.name], missed(scores[row.name], scores)))
    return [*out_of_order(scores), *bench.wrong]


def chosen(modes: Sequence[str]) -> list[Row]:
    """By names, or by what names begin with where that is none itself."""
    names = {row.name for row in ROWS}
    return [row for row in ROWS if any(row.name.startswith(m) and m in (row.name, *({m} - names)) for m in modes)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Convergence of every mode, with real peers.")
    parser.add_argument("--modes", default="", help="names of rows, or what they begin with, comma-separated")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    parser.add_argument("--watch-every", type=int, default=0, help="steps between two looks at the loss, for plot.py")
    arguments = parser.parse_args()
    wanted = chosen(arguments.modes.split(","))
    bad = []

    def tell(line: dict[str, Any]) -> None:
        bad.extend(line["missed"])
        print(json.dumps(line) if arguments.json else in_words(line), flush=True)

    together = run(wanted, arguments.seeds, tell, arguments.watch_every)
    for what in together:
        print(what, file=sys.stderr)
    return 1 if bad or together else 0


if __name__ == "__main__":
    sys.exit(main())
