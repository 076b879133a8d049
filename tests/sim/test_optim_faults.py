"""The outer optimizer in the simulator: every phase of a round x every fault, for every way that a round can be done.

Which promises are compared is in optim_story.py. A cell is named mode-phase-fault; the name decides who is hit, in
which round, and when exactly.
"""

from __future__ import annotations

import pytest
import torch
from sim.optim_story import FAULTS, PHASES, Play

WHOLE = ("diloco", "streaming", "delayed", "eager", "gossip")
IN_FLIGHT = (
    "flying",
    "flushing",
)  # only where fragments land later than they are sent, or replicas are equal in the end
HAS_FLIGHTS = {"diloco": (), "sparse": (), "gossip": ("flushing",)}
CELLS = [
    *((mode, phase, fault) for mode in WHOLE for phase in PHASES for fault in FAULTS),
    # Of these the faults that meet what is their own: a whole period of overlap, what is kept back of a delta.
    *(
        (mode, phase, fault)
        for mode in ("streaming_full", "sparse")
        for phase in PHASES
        for fault in ("die", "join", "two_joins", "overdue")
    ),
    # Rounds that cannot be done are dropped, or raised, by all alike.
    *(
        (f"{mode}_{on_failure}", phase, fault)
        for mode in ("diloco", "streaming")
        for on_failure in ("local", "raise")
        for phase in ("sent", "reducing")
        for fault in ("overdue", "too_few")
    ),
]
CELLS = [cell for cell in CELLS if cell[1] not in IN_FLIGHT or cell[1] in HAS_FLIGHTS.get(cell[0], IN_FLIGHT)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The vectors are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("mode", "phase", "fault"), CELLS)
def test_cell(mode: str, phase: str, fault: str) -> None:
    found = Play(mode, phase, fault, 0).run()
    assert not found, "\n".join(found)
