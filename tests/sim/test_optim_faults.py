"""The outer optimizer in the simulator: every phase of a round x every fault, for every way that a round can overlap.

Which promises are compared is in optim_story.py. A cell is named mode-phase-fault; each plays several seeds, which vary
who is hit, in which round, and when exactly.
"""

from __future__ import annotations

import pytest
import torch
from sim.optim_story import FAULTS, MODES, PHASES, Play

SEEDS = {"diloco": 2, "streaming": 2, "delayed": 2}  # of the others one: they share the engine's ways with these
IN_FLIGHT = ("flying", "flushing")  # only where fragments land later than they are sent
CELLS = [
    (mode, phase, fault)
    for mode in MODES
    for phase in PHASES
    for fault in FAULTS
    if phase not in IN_FLIGHT or mode not in ("diloco", "sparse")
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The vectors are tiny."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("mode", "phase", "fault"), CELLS)
def test_cell(mode: str, phase: str, fault: str) -> None:
    for seed in range(SEEDS.get(mode, 1)):
        found = Play(mode, phase, fault, seed).run()
        assert not found, f"seed {seed}:\n" + "\n".join(found)
