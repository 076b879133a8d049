"""advice_reach.py - who can dial whom, and what stands between: a firewall, NAT, a wrong address. Pure.

One direction is enough for a run, at the advertised addresses: who cannot be dialled dials. Without either the two
need a third peer.
"""

from __future__ import annotations

from pccl.addresses import joined, split
from pccl.doctor.facts import Call, Measurements, Place, Role
from pccl.doctor.finding import Finding, Level
from pccl.doctor.way import label, other, side_of

__all__ = ["reach"]

EXAMPLE_PORT = 29500
RELAYED = "neither dials the other: a third peer that both can dial must relay what they have for each other"
WILDCARDS = ("::", "0.0.0.0")


def reach(measured: Measurements, by: Role) -> Finding:
    """Whether one side can dial the other as a run would: at an address that it advertises."""
    place = side_of(measured, other(by))
    who, whom = label(measured, by), label(measured, other(by))
    calls = [call for call in measured.calls if call.by == by]
    back = _good(measured, other(by))
    level: Level = "advice" if back else "problem"
    then = f"{_nat(place, whom)}; in a run " + (f"{whom} dials {who}" if back else RELAYED)
    values = {
        "own_address": place.own,
        "seen_address": place.seen,
        "behind_nat": place.behind_nat,
        "advertised": list(place.advertised),
        "reached": [call.address for call in calls if call.outcome == "ok"],
        "failed": {call.address: call.outcome for call in calls if call.outcome != "ok"},
        "details": [call.detail for call in calls if call.outcome != "ok"],
    }
    name = f"{who} -> {whom}"
    good = _good(measured, by)
    if good:
        text = f"{who} can dial {whom} at {good[0]}{_nat(place, whom)}"
        return Finding("reachability", name, "ok", text, values=values)
    elsewhere = [call.address for call in calls if call.outcome == "ok"]
    if elsewhere:
        told = ", ".join(place.advertised)
        text = f"{whom} advertises {told}, where {who} does not reach it, but at {elsewhere[0]}{then}"
        return Finding("reachability", name, level, text, _advertise(elsewhere[0], whom), values)
    tried = "; ".join(f"{call.address}: {_outcome(call)}" for call in calls) or "no address to try"
    text = f"{who} cannot dial {whom} ({tried}){then}"
    return Finding("reachability", name, level, text, _remedy(place, who, whom, calls), values)


def _good(measured: Measurements, by: Role) -> list[str]:
    """The advertised addresses of the other side at which this one reaches it."""
    told = side_of(measured, other(by)).advertised
    return [call.address for call in measured.calls if call.by == by and call.outcome == "ok" and call.address in told]


def _outcome(call: Call) -> str:
    words = {"refused": "refused", "timeout": "no answer", "stranger": "something else answers there"}
    return words.get(call.outcome, "no way there")


def _nat(place: Place, whom: str) -> str:
    if not place.behind_nat:
        return ""
    return f"; {whom} has the address {place.own} and is seen as {place.seen}: NAT is between them"


def _remedy(place: Place, who: str, whom: str, calls: list[Call]) -> str:
    """What lets calls through to a side that none has reached."""
    host, port = split(place.listens)
    fixed = port or EXAMPLE_PORT
    choose = "" if port else f" (a fixed port: PCCL_LISTEN=[::]:{fixed}, here --call-back {fixed})"
    if host not in (*WILDCARDS, place.own):
        return f"on {whom} listen at all addresses, not at {host} only: PCCL_LISTEN=[::]:{fixed}"
    if place.behind_nat:
        return (
            f"at the router that has {place.seen} forward TCP port {fixed} to {joined(place.own, fixed)}, "
            f"and on {whom} set PCCL_LISTEN=[::]:{fixed} PCCL_ADVERTISE={joined(place.seen, fixed)}"
        )
    if calls and all(call.outcome == "stranger" for call in calls):
        return f"on {whom} set PCCL_ADVERTISE to an address that means {whom} to {who} too"
    return f"open TCP port {fixed} on {whom} for calls from {who}{choose}: its own firewall, or its provider's"


def _advertise(address: str, whom: str) -> str:
    _, port = split(address)
    return f"on {whom} set PCCL_ADVERTISE={address} PCCL_LISTEN=[::]:{port}"
