"""Sizes beyond 32 bits: an all-reduce of more than 2^31 bytes, and state of more than 4 GiB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pccl

GIB = 1 << 30
COUNT = 2 * GIB + 4097
STATE_BYTES = 4 * GIB + 12345
NEEDED = 16 * GIB


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


pytestmark = pytest.mark.skipif(_available_bytes() < NEEDED, reason="needs 16 GiB of free memory")


def test_all_reduce_of_more_than_2_to_the_31_bytes(cluster: Any) -> None:
    places = [0, 1, GIB, COUNT // 2 - 1, COUNT // 2, 2 * GIB - 1, 2 * GIB, COUNT - 1]

    def body(comm: pccl.Communicator) -> list[int]:
        array = np.zeros(COUNT, np.uint8)  # never touched but for these: takes no memory
        array[places] = comm.rank + np.arange(len(places))
        out = np.empty(COUNT, np.uint8)
        comm.all_reduce(array, out=out, timeout=120)
        assert int(np.count_nonzero(out)) == len(places)
        return [int(value) for value in out[places]]

    expected = [1 + 2 * k for k in range(len(places))]
    assert cluster(2, body, op_timeout=120) == [expected, expected]


def test_state_of_more_than_4_gib(cluster: Any) -> None:
    places = [0, 2 * GIB + 1, 4 * GIB - 1, 4 * GIB, STATE_BYTES - 1]

    def body(comm: pccl.Communicator) -> tuple[int, list[int]]:
        array = np.zeros(STATE_BYTES, np.uint8)  # takes memory where it is written to
        if comm.rank == 0:
            array[places] = 7
        report = comm.sync_state({"w": array}, strategy="send" if comm.rank == 0 else "receive")
        found = [int(value) for value in array[places]]
        comm.barrier()
        comm.close()  # until then what was synchronised is on offer
        return report.received_bytes, found

    results = cluster(2, body, together=False, op_timeout=240)
    assert [found for _, found in results] == [[7] * len(places)] * 2
    # The chunks that differ, and the digests of all by which they are found.
    assert results[0][0] == 0 and len(places) <= results[1][0] <= STATE_BYTES // 2000
