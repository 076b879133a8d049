"""findings.py - what measurements mean: a list of findings, in the order in which to read them. Pure."""

from __future__ import annotations

from pccl.doctor import advice_host as host
from pccl.doctor import advice_path as path
from pccl.doctor import advice_tcp as tcp
from pccl.doctor.advice_reach import reach
from pccl.doctor.facts import Measurements, Role
from pccl.doctor.finding import Finding
from pccl.doctor.way import label, side_of, way

__all__ = ["findings"]


def findings(measured: Measurements) -> list[Finding]:
    """Everything there is to say about a path: who reaches whom, what it carries, what holds it back, the hosts."""
    sides: tuple[Role, Role] = ("client", "listener")
    ways = [way(measured, side) for side in sides]
    return [
        *(reach(measured, by) for by in sides),
        path.round_trip(measured),
        *(check(one) for check in (path.bandwidth, path.loss, path.mtu, tcp.congestion, tcp.buffers) for one in ways),
        host.clock(measured),
        host.versions(measured),
        *(host.descriptors(label(measured, side), side_of(measured, side)) for side in sides),
    ]
