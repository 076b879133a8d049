"""Measures the emulated links against the topology: round trip, rate, loss; with the file's value beside each.

Links with the same settings are measured once, unless all are asked for. A rate is judged by UDP, which fills the line
whatever its loss; TCP is shown for one and for several connections, and judged only where nothing but the line should
limit it. A rate above JUDGED_MBIT_MAX, or none, is more than a machine can be asked to fill, and is not judged.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .emulator import Emulator
from .router import build
from .topology import Topology

RTT_TOLERANCE_MS = 1.0
RTT_TOLERANCE = 0.03
RATE_TOLERANCE = 0.07
TCP_TOLERANCE = 0.15
LOSS_SIGMAS = 3.0
LOSS_TAIL = 0.00135
JUDGED_MBIT_MAX = 1200.0
TCP_JUDGED_MBIT = 25.0  # in flight: with more, the congestion control decides
PROBE_MBIT = 200.0  # for counting losses: less than the line carries, and than this machine does
LOSS_PACKETS_MAX = 60_000
FLOOD_OVER = 1.25
WIRE_BYTES = 1500
TCP_PAYLOAD = 1448 / 1500
ECHO_PORT, PORT = 7000, 7001
PINGS = 15
IDLE_MS = 1000
CONNECTIONS = 4
PROCESS_S = 90.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One measured value. `ok` is None when it is only shown."""

    pair: tuple[str, str]
    what: str
    expected: str
    measured: str
    ok: bool | None

    def __str__(self) -> str:
        verdict = {True: "ok", False: "OFF", None: "-"}[self.ok]
        arrow = f"{self.pair[0]} -> {self.pair[1]}"
        return f"{arrow:24} {self.what:14} expected {self.expected:>22}   measured {self.measured:>24}   {verdict}"


class Prober:
    """Runs the probe program at the sites."""

    def __init__(self, wan: Emulator) -> None:
        self._wan = wan
        self._probe = str(build() / "probe")

    def start(self, site: str, *arguments: object) -> subprocess.Popen[Any]:
        command = [self._probe, *map(str, arguments)]
        return self._wan.popen(site, command, stdout=subprocess.PIPE, text=True)

    def listen(self, site: str, *arguments: object) -> subprocess.Popen[Any]:
        """A receiver that is ready."""
        process = self.start(site, *arguments)
        assert process.stdout is not None
        if "ready" not in process.stdout.readline():
            raise RuntimeError(f"the probe at {site} did not start")
        return process

    def result(self, process: subprocess.Popen[Any]) -> dict[str, Any]:
        """What it printed last."""
        output, _ = process.communicate(timeout=PROCESS_S)
        if process.returncode != 0:
            raise RuntimeError(f"the probe failed: {process.args!r}")
        last: dict[str, Any] = json.loads(output.splitlines()[-1])
        return last

    def datagrams(self, a: str, b: str, count: int, mbit: float) -> dict[str, Any]:
        """What arrived of so many datagrams."""
        idle_ms = 500 + 2 * int(self._wan.link(a, b).delay_ms + self._wan.link(a, b).jitter_ms)
        receiver = self.listen(b, "receive-udp", PORT, idle_ms)
        sent = self.result(self.start(a, "send-udp", self._wan.address(b), PORT, count, WIRE_BYTES, mbit))
        return self.result(receiver) | sent

    def stream(self, a: str, b: str, connections: int, warm_up_s: float, seconds: float) -> dict[str, Any]:
        """What several TCP connections carried, and how much they sent twice."""
        receiver = self.listen(b, "receive-tcp", PORT, connections, warm_up_s, seconds)
        sender = self.start(a, "send-tcp", self._wan.address(b), PORT, connections)
        return self.result(receiver) | self.result(sender)


# -- round trips -----------------------------------------------------------------------------------------------------


def judge_rtt(wan: Emulator, a: str, b: str, measured: dict[str, Any]) -> Finding:
    there, back = wan.link(a, b), wan.link(b, a)
    jitter_ms = there.jitter_ms + back.jitter_ms
    expected = there.delay_ms + back.delay_ms + jitter_ms / 2
    # The least is the line's, whatever else the machine does; only where delays are meant to vary it is the median,
    # which of evenly distributed ones strays by about their width over the root of their number.
    found_ms = measured["median_us" if jitter_ms else "min_us"] / 1e3
    late_ms = max(RTT_TOLERANCE_MS, RTT_TOLERANCE * expected) + 2 * jitter_ms / math.sqrt(PINGS)
    early_ms = late_ms if jitter_ms else 0.0  # a machine is late, never early
    answers = PINGS // 2 + 1 if there.loss or back.loss else PINGS
    ok = measured["answers"] >= answers and -early_ms <= found_ms - expected <= late_ms
    return Finding((a, b), "round trip", f"{expected:.2f} ms", f"{found_ms:.2f} ms", ok)


def check_rtts(
    wan: Emulator, prober: Prober, pairs: Sequence[tuple[str, str]], ipv6: bool = False
) -> Iterator[Finding]:
    """All at once: they hardly load the machine."""
    echoes = [prober.listen(site, "echo", ECHO_PORT) for site in sorted({b for _, b in pairs})]
    pings = [(a, b, prober.start(a, "ping", wan.address(b, ipv6), ECHO_PORT, PINGS)) for a, b in pairs]
    for a, b, ping in pings:
        yield judge_rtt(wan, a, b, prober.result(ping))
    for echo in echoes:
        echo.kill()
        echo.communicate()


# -- rates -----------------------------------------------------------------------------------------------------------


def udp_rate(wan: Emulator, prober: Prober, a: str, b: str, seconds: float) -> Finding:
    """Floods the line with a quarter more than it carries, so that its queue never empties."""
    expected = wan.topology.expected_mbit(a, b)
    mbit = expected * FLOOD_OVER
    got = prober.datagrams(a, b, int(mbit * 1e6 / 8 / WIRE_BYTES * seconds) + 2, mbit)
    measured = got["wire_bytes"] * 8e-6 / got["seconds"] if got["seconds"] > 0 else 0.0
    passing = expected * (1 - wan.link(a, b).loss)
    ok = abs(measured - passing) <= RATE_TOLERANCE * passing
    return Finding((a, b), "rate, UDP", f"{passing:.1f} Mbit/s", f"{measured:.1f} Mbit/s", ok)


def tcp_rate(wan: Emulator, prober: Prober, a: str, b: str, connections: int, seconds: float) -> Finding:
    """Payload per second, after the time a connection takes to come up to speed."""
    expected = wan.topology.expected_mbit(a, b)
    rtt_s = (wan.link(a, b).delay_ms + wan.link(b, a).delay_ms) / 1e3
    got = prober.stream(a, b, connections, 0.3 + 12 * rtt_s, seconds)
    measured = got["bytes"] * 8e-6 / got["seconds"]
    plain = wan.link(a, b).loss == 0 and wan.link(a, b).jitter_ms == 0 and connections > 1
    judged = plain and 0 < expected <= JUDGED_MBIT_MAX and rtt_s * expected <= TCP_JUDGED_MBIT
    ok = abs(measured / (expected * TCP_PAYLOAD) - 1) <= TCP_TOLERANCE if judged else None
    if not got["intact"]:
        ok = False
    limit = f"<= {expected * TCP_PAYLOAD:.1f} Mbit/s" if expected else "no limit"
    note = f"{measured:.1f} Mbit/s, {got['retransmits']} resent"
    return Finding((a, b), f"rate, TCP x{connections}", limit, note, ok)


def check_rates(wan: Emulator, prober: Prober, a: str, b: str, seconds: float) -> Iterator[Finding]:
    if 0 < wan.topology.expected_mbit(a, b) <= JUDGED_MBIT_MAX:
        yield udp_rate(wan, prober, a, b, seconds)
    for connections in (1, CONNECTIONS):
        yield tcp_rate(wan, prober, a, b, connections, seconds)


def shared_cap(wan: Emulator, prober: Prober, site: str, up: bool, seconds: float) -> Finding | None:
    """Floods all links of a site in one direction at once; None when they cannot carry more than the cap."""
    topology = wan.topology
    others = [other for other in wan.sites if other != site and not topology.links[site, other].local]
    cap = topology.sites[site].up_mbit if up else topology.sites[site].down_mbit
    pairs = [(site, other) if up else (other, site) for other in others]
    offers = [min(FLOOD_OVER * cap, topology.expected_mbit(*pair)) for pair in pairs]
    if not 0 < cap <= JUDGED_MBIT_MAX or len(others) < 2 or sum(offers) < FLOOD_OVER * cap:
        return None
    share = FLOOD_OVER * cap / sum(offers)
    counts = [int(offer * share * 1e6 / 8 / WIRE_BYTES * seconds) for offer in offers]
    receivers = [prober.listen(b, "receive-udp", PORT + i, IDLE_MS) for i, (_, b) in enumerate(pairs)]
    senders = [
        prober.start(a, "send-udp", wan.address(b), PORT + i, counts[i], WIRE_BYTES, offers[i] * share)
        for i, (a, b) in enumerate(pairs)
    ]
    for sender in senders:
        prober.result(sender)
    got = [prober.result(receiver) for receiver in receivers]
    measured = sum(result["wire_bytes"] * 8e-6 / max(result["seconds"], 1e-3) for result in got)
    names = (site, "all") if up else ("all", site)
    ok = abs(measured - cap) <= RATE_TOLERANCE * cap
    return Finding(names, "shared cap", f"{cap:.1f} Mbit/s", f"{measured:.1f} Mbit/s", ok)


def check_caps(wan: Emulator, prober: Prober, seconds: float) -> Iterator[Finding]:
    """One site of every kind."""
    kinds = {(site.up_mbit, site.down_mbit): site.name for site in reversed(list(wan.topology.sites.values()))}
    for name in kinds.values():
        for up in (True, False):
            if finding := shared_cap(wan, prober, name, up, seconds):
                yield finding


# -- losses ----------------------------------------------------------------------------------------------------------


def plausible_loss(lost: int, count: int, loss: float) -> bool:
    """Within three sigma; where few are expected, outside the same tails of a Poisson distribution."""
    expected = count * loss
    if expected == 0 or expected > 50:
        return abs(lost - expected) <= LOSS_SIGMAS * math.sqrt(expected * (1 - loss))
    terms = [math.exp(k * math.log(expected) - expected - math.lgamma(k + 1)) for k in range(lost + 1)]
    at_most, fewer = sum(terms), sum(terms[:-1])
    return at_most > LOSS_TAIL and 1 - fewer > LOSS_TAIL


def check_loss(wan: Emulator, prober: Prober, a: str, b: str, seconds: float) -> Finding:
    """Datagrams at half the line's rate: what is missing was lost, not queued too long."""
    loss = wan.link(a, b).loss
    limit = wan.topology.expected_mbit(a, b)
    mbit = min(PROBE_MBIT, limit / 2) if limit else PROBE_MBIT
    count = min(LOSS_PACKETS_MAX, max(200, int(mbit * 1e6 / 8 / WIRE_BYTES * seconds)))
    got = prober.datagrams(a, b, count, mbit)
    lost, expected = got["sent"] - got["packets"], count * loss
    ok = plausible_loss(lost, count, loss)
    return Finding((a, b), "loss", f"{expected:.1f} of {count} ({loss:.3%})", f"{lost} ({lost / count:.3%})", ok)


# -- all of it -------------------------------------------------------------------------------------------------------


def unlike(topology: Topology) -> list[tuple[str, str]]:
    """One pair of every kind: the same settings there and back, and the same caps at both ends."""
    kinds: dict[object, tuple[str, str]] = {}
    for a, b in topology.links:
        ends = topology.sites[a].up_mbit, topology.sites[b].down_mbit
        kinds.setdefault((topology.links[a, b], topology.links[b, a], ends), (a, b))
    return list(kinds.values())


def check(topology: Topology, every_pair: bool = False, seconds: float = 1.5) -> Iterator[Finding]:
    """Yields the findings as they are made. Nothing else should use the machine meanwhile."""
    with Emulator(topology) as wan:
        prober = Prober(wan)
        yield from check_rtts(wan, prober, [pair for pair in topology.links if pair[0] < pair[1]])
        for a, b in list(topology.links) if every_pair else unlike(topology):
            yield check_loss(wan, prober, a, b, seconds)
            yield from check_rates(wan, prober, a, b, seconds)
        yield from check_caps(wan, prober, seconds)
