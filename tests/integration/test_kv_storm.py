"""A short storm of aborts; the long one is `python -m stress.kv.abort_storm`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from integration import kv_pools

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

from stress.kv.abort_storm import Storm


def test_half_of_many_transfers_are_aborted_and_nothing_leaks(cluster: Any) -> None:
    with kv_pools.two(cluster) as (d, p):
        storm = Storm(d, p, threads=12, deadline_s=15.0)
        tally = storm.run(96, 0.5)
        storm.close()
    assert not tally.wrong
    assert sum(tally.ends.values()) == 96
    assert 20 <= tally.ends["committed", "committed"] <= 76
