"""A WAN on one machine: sites in network namespaces, joined by a router that delays, limits and loses packets.

`README.md` beside this file tells how to use it; `python -m stress.wan --help` lists the commands.
"""

from __future__ import annotations

from .emulator import Emulator
from .namespaces import NamespaceError, why_not
from .router import RouterError
from .topology import Link, Site, Topology, TopologyError, load, parse, ready_made

__all__ = [
    "Emulator",
    "Link",
    "NamespaceError",
    "RouterError",
    "Site",
    "Topology",
    "TopologyError",
    "load",
    "parse",
    "ready_made",
    "why_not",
]
