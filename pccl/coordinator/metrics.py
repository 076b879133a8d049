"""metrics.py - a Status as metrics for Prometheus: which there are, their names, their labels. Decides no more.

Pure: `exposition(status)` gives the text that is scraped. Peers are labelled by their short ids, in full only where two
short ones are alike. Free text (reasons, hosts' own words) is no label. Wants `prometheus-client`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from pccl import messages as m
from pccl.errors import ArgumentError
from pccl.types import LOSS_UNKNOWN, Algorithm, short_id

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
except ImportError as missing:
    raise ArgumentError("metrics and the page want prometheus-client: pip install 'pccl[eyes]'") from missing

CONTENT_TYPE = CONTENT_TYPE_LATEST
#: Decisions that have a metric of their own.
OWN = ("join", "freeze", "restart")

#: Names of peers in labels.
Names = dict[bytes, str]


class _Once:
    """A collector of what is given."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Called by the registry."""
        return self._metrics


def exposition(status: m.Status) -> bytes:
    """The text of all metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families(status))))
    return generate_latest(registry)


def families(status: m.Status) -> Iterator[Metric]:
    """All metrics of a run."""
    yield _one("pccl_up_seconds", "Since this coordinator process began to serve the run.", status.up_s)
    yield _one("pccl_incarnation", "How many processes have led the run; 0: no state.", status.incarnation)
    yield _one("pccl_state_trouble", "1 while the state cannot be written.", bool(status.trouble))
    malformed = CounterMetricFamily("pccl_malformed_messages", "Control messages that did not decode.")
    malformed.add_metric([], status.malformed)
    yield malformed
    for make in (_group_gauges, _group_counters, _plans, _members, _member_counters, _links):
        yield from make(status.groups)


# -- groups ---------------------------------------------------------------------------------------------------


def _group_gauges(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    members = _gauge("pccl_members", "Members of the group.")
    waiting = _gauge("pccl_waiting", "Peers that wait to become members.")
    epoch = _gauge("pccl_epoch", "The newest epoch.")
    boundary = _gauge("pccl_boundary", "The furthest boundary that a member has told.")
    for group in groups:
        label = [str(group.group)]
        members.add_metric(label, len(group.members))
        waiting.add_metric(label, len(group.waiting))
        epoch.add_metric(label, group.epoch)
        boundary.add_metric(label, max((member.boundary for member in group.members), default=0))
    return iter((members, waiting, epoch, boundary))


def _group_counters(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    """They begin at 0 with the coordinator's process."""
    joins = _counter("pccl_joins", "Peers that asked to join.")
    losses = _counter("pccl_losses", "Members that are gone: leave, lost (proven), lease (silent).", "reason")
    evictions = _counter("pccl_evictions", "Members that were put out: all losses but those that left by themselves.")
    changes = _counter("pccl_changes", "Changes: freezes for a loss, a leave, a failed op or a dead link.")
    restarts = _counter("pccl_restarts", "Times that this process has taken up the group of an earlier one.")
    others = _counter("pccl_decisions", "Other entries of the log, by what they say.", "what")
    for group in groups:
        label, counts = [str(group.group)], dict(group.counts)
        joins.add_metric(label, counts.get("join", 0))
        changes.add_metric(label, counts.get("freeze", 0))
        restarts.add_metric(label, counts.get("restart", 0))
        reasons = {"leave": 0, "lost": 0, "lease": 0} | dict(group.losses)
        for reason, count in reasons.items():
            losses.add_metric([*label, reason], count)
        evictions.add_metric(label, sum(reasons.values()) - reasons["leave"])
        for what, count in counts.items():
            if what not in OWN and what not in reasons:
                others.add_metric([*label, what], count)
    return iter((joins, losses, evictions, changes, restarts, others))


def _plans(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    predicted = _gauge("pccl_plan_predicted_seconds", "Of 64 MiB, when the plan was made. Absent: nothing is known.")
    expected = _gauge("pccl_plan_expected_seconds", "Of 64 MiB by the same plan, as the paths are now.")
    achieved = _gauge("pccl_plan_achieved_seconds", "Of 64 MiB by large all-reduces. Absent: none yet.")
    algorithm = _gauge("pccl_plan_info", "What large all-reduces take.", "algorithm")
    for group in groups:
        label, plan, reality = [str(group.group)], group.plan, group.reality
        if plan is None:
            continue
        algorithm.add_metric([*label, Algorithm(plan.large_algorithm or Algorithm.RING).name.lower()], 1)
        if plan.predicted_s:
            predicted.add_metric(label, plan.predicted_s)
        if reality is not None:
            expected.add_metric(label, reality.expected_s)
            if reality.achieved_s:
                achieved.add_metric(label, reality.achieved_s)
    return iter((predicted, expected, achieved, algorithm))


# -- members and links ----------------------------------------------------------------------------------------


def names_of(group: m.GroupStatus) -> Names:
    """What the members are called in labels."""
    often = Counter(short_id(member.peer) for member in group.members)
    ids = [member.peer for member in group.members]
    return {peer: short_id(peer) if often[short_id(peer)] == 1 else peer.hex() for peer in ids}


def _members(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    boundary = _gauge("pccl_member_boundary", "The boundary that the member has told.", "peer")
    silence = _gauge("pccl_member_silence_seconds", "Since the member was heard.", "peer")
    connected = _gauge("pccl_member_connected", "1 while its control connection is open.", "peer")
    rate = _gauge("pccl_member_bytes_per_second", "Bytes that its ops send and receive, of late.", "peer")
    for group in groups:
        names = names_of(group)
        for member in group.members:
            label = [str(group.group), names[member.peer]]
            boundary.add_metric(label, member.boundary)
            silence.add_metric(label, member.heard_s)
            connected.add_metric(label, member.connected)
            rate.add_metric(label, member.bytes_per_s)
    return iter((boundary, silence, connected, rate))


def _member_counters(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    ops = _counter("pccl_member_ops", "Ops that have ended at the member.", "peer")
    nbytes = _counter("pccl_member_bytes", "Bytes that its ops have sent and received.", "peer")
    for group in groups:
        names = names_of(group)
        for member in group.members:
            label = [str(group.group), names[member.peer]]
            ops.add_metric(label, member.ops)
            nbytes.add_metric(label, member.bytes)
    return iter((ops, nbytes))


def _links(groups: Iterable[m.GroupStatus]) -> Iterator[Metric]:
    rate = _gauge("pccl_link_bytes_per_second", "What the link was last measured to carry.", "from", "to")
    rtt = _gauge("pccl_link_rtt_seconds", "Round trip of the link.", "from", "to")
    loss = _gauge("pccl_link_loss_ratio", "Packets lost, of those sent.", "from", "to")
    streams = _gauge("pccl_link_streams", "Connections that the plan gives the link.", "from", "to")
    up = _gauge("pccl_link_up", "0 while the link is suspected or done without.", "from", "to")
    for group in groups:
        names = list(names_of(group).values())
        for link in group.links:
            label = [str(group.group), names[link.sender], names[link.receiver]]
            if link.bytes_per_s:
                rate.add_metric(label, link.bytes_per_s)
            if link.rtt_us:
                rtt.add_metric(label, link.rtt_us / 1e6)
            if link.loss_ppm != LOSS_UNKNOWN:
                loss.add_metric(label, link.loss_ppm / 1e6)
            streams.add_metric(label, link.streams)
            up.add_metric(label, link.state == "up")
    return iter((rate, rtt, loss, streams, up))


# -- small functions ------------------------------------------------------------------------------------------


def _one(name: str, text: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["group", *labels])


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=["group", *labels])
