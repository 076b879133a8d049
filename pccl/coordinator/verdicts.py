"""verdicts.py - how ops end that were pending when the epochs froze, or that a peer forgoes: the five rules of
docs/protocol.md 1.3.

Pure. The rule that everything hangs on: an op is committed if every surviving participant has finished it or is over
it. Had any of them returned success, all would have finished before they froze. The one exception: peers that meant
different ops by one name may all have finished theirs (two that broadcast their own data). Who sees a mismatch takes
no FIN from the other, so as long as nobody is over the op nobody has returned success.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pccl.frozen import Report
from pccl.messages import OpFault, OpRef, Verdict, clip
from pccl.types import OpName, Status, short_id

NAMED_MAX = 8
TEXT_LONG = 300
TEXT_SHORT = 60
LONG_TEXTS_MAX = 4096
#: Of the faults that await a verdict; more than peers can have ops pending. Another one is not taken down.
FAULTS_MAX = 16384


@dataclass(slots=True, frozen=True)
class Fault:
    """An OpFault and who sent it."""

    reporter: bytes
    report: OpFault


def judge(
    since: Mapping[bytes, int],
    reports: Mapping[bytes, Report],
    faults: Mapping[OpName, Fault],
    min_peers: int,
    lost: Mapping[bytes, int],
) -> tuple[Verdict, ...]:
    """Verdicts on every pending op that does not simply start again, and on those that somebody will never call.

    `since`: the survivors in the order of ranks, and when they came; `lost`: the same of those who went in this change.
    """
    forgone = {name for name, fault in faults.items() if fault.report.kind == "forgone"}
    names = sorted(forgone.union(name for report in reports.values() for name in report.pending))
    limit = TEXT_LONG if len(names) <= LONG_TEXTS_MAX else TEXT_SHORT
    verdicts = []
    for name in names:
        decision = _decide(name, since, reports, faults.get(name), min_peers, lost)
        if decision is not None:
            status, text = decision
            verdicts.append(Verdict(OpRef(*name), int(status), clip(text, limit)))
    return tuple(verdicts)


def _decide(
    name: OpName,
    since: Mapping[bytes, int],
    reports: Mapping[bytes, Report],
    fault: Fault | None,
    min_peers: int,
    lost: Mapping[bytes, int],
) -> tuple[Status, str] | None:
    entries = [reports[peer].pending[name] for peer in since if name in reports[peer].pending]
    needs = sorted({peer for entry in entries for peer in entry.needs})
    participants = [peer for peer in since if since[peer] <= name.boundary]
    if any(entry.pair for entry in entries):
        participants = [peer for peer in participants if peer in needs]
    unfinished = [peer for peer in participants if not reports[peer].done(name)]
    if not entries:
        assert fault is not None  # forgone, and not called by anybody yet
        return _fault_verdict(name, fault.report.mine, fault, unfinished, reports)
    what = entries[0].what
    disputed = fault is not None and fault.report.kind == "mismatch"
    if not unfinished and not (disputed and not any(reports[peer].over(name) for peer in participants)):
        return Status.OK, ""
    gone = [peer for peer in needs if peer not in since]
    if any(entry.everyone for entry in entries):
        gone += sorted(peer for peer in lost if lost[peer] <= name.boundary and peer not in gone)
    if gone:
        return Status.EPEER, f"{what}: it needs {_people(gone)}, which is gone"
    if fault is not None:
        return _fault_verdict(name, what, fault, unfinished, reports)
    if len(since) < min_peers:
        return Status.EFEW, f"{what}: {len(since)} peers are left, the run asks for {min_peers}"
    return None


def _fault_verdict(
    name: OpName, what: str, fault: Fault, unfinished: list[bytes], reports: Mapping[bytes, Report]
) -> tuple[Status, str]:
    report, reporter = fault.report, short_id(fault.reporter)
    if report.kind == "mismatch":
        other = short_id(report.peer) if report.peer else "another peer"
        own = reports[report.peer].pending.get(name) if report.peer in reports else None
        theirs = (
            report.theirs if own is None or own.what == report.mine else own.what
        )  # what was seen of it, or its word
        return Status.EMISMATCH, f"peer {reporter} called {report.mine}, peer {other} called {theirs}"
    if report.kind == "cancelled":
        return Status.ECANCELLED, f"{what}: cancelled by peer {reporter}"
    if report.kind == "forgone":
        return Status.ECANCELLED, f"{what}: peer {reporter} could not take part"
    uncalled = [peer for peer in unfinished if name not in reports[peer].pending]
    waiting = [peer for peer in unfinished if name in reports[peer].pending]
    facts = [
        f"not called by {_people(uncalled)}" if uncalled else "",
        f"not finished by {_people(waiting)}" if waiting else "",
    ]
    return Status.ETIMEOUT, f"{what}: overdue; " + ", ".join(fact for fact in facts if fact)


def _people(peers: Iterable[bytes]) -> str:
    ids = [short_id(peer) for peer in peers]
    more = f" and {len(ids) - NAMED_MAX} more" if len(ids) > NAMED_MAX else ""
    return ("peer " if len(ids) == 1 else "peers ") + ", ".join(ids[:NAMED_MAX]) + more
