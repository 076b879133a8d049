"""diagrams.py - draws the state machines that are written in Python from their tables: docs/states.md.

`cd docs; python -m pccl.testing.diagrams > states.md`; a test checks that the file is current.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pccl import session
from pccl.coordinator import membership
from pccl.kv.receive import ReceiveMachine
from pccl.kv.send import SendMachine

HEAD = """# States

Made by `cd docs; python -m pccl.testing.diagrams > states.md`; do not edit. The C machines, Link and Op, are in
`csrc/`. Events that a state does not list change nothing there. `docs/protocol.md` says why.
"""


def document() -> str:
    """The whole file."""
    parts = [
        HEAD,
        _machine("Membership", "coordinator, one per group: `pccl/coordinator/membership.py`", membership.TABLE),
        _machine("Session", "peer: `pccl/session.py`", session.TABLE),
        _machine("Receive", "a KV transfer, where blocks are wanted: `pccl/kv/receive.py`", ReceiveMachine.table),
        _machine("Send", "a KV transfer, where blocks are: `pccl/kv/send.py`", SendMachine.table),
    ]
    return "\n".join(parts)


def _machine(name: str, where: str, table: Mapping[tuple[Any, type], Any]) -> str:
    return f"## {name}\n\n{where}\n\n{_diagram(table)}\n{_rows(table)}"


def _diagram(table: Mapping[tuple[Any, type], Any]) -> str:
    edges: dict[tuple[str, str], list[str]] = {}
    for (state, event), row in table.items():
        for target in type(state):
            if target in row.to and target is not state:
                edges.setdefault((state.name, target.name), []).append(event.__name__)
    first = next(iter(table))[0].name
    lines = [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in edges.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", f"    [*] --> {first}", *lines, "```", ""])


def _rows(table: Mapping[tuple[Any, type], Any]) -> str:
    lines = ["| state | event | what is done | next |", "|---|---|---|---|"]
    for (state, event), row in table.items():
        targets = ", ".join(target.name for target in type(state) if target in row.to)
        lines.append(f"| {state.name} | {event.__name__} | {(row.act.__doc__ or '').strip()} | {targets} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(document())
