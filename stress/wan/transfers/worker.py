"""What runs at the sites: a peer that offers, or one that fetches.

Runs as a script against the installed package. Takes its job as JSON in argv[1]; prints lines of JSON; ends with its
input, so also when the benchmark is killed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


def say(**answer: Any) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


def take_part(job: dict[str, Any]) -> None:
    """Offers everything in pieces of every size, or fetches it."""
    import pccl

    data = np.random.default_rng(1).integers(0, 256, job["bytes"], np.uint8)
    listen = f"{job['address']}:0"
    with pccl.connect(
        job["coordinator"], run=job["run"], secret=job["secret"], listen=listen, timeout=60, transport="tcp"
    ) as comm:
        if job["role"] == "source":
            offers = [comm.transfers.offer(f"in {size}", data, chunk_bytes=size) for size in job["pieces"]]
            say(ready=True)
            sys.stdin.read()
            for offer in offers:
                offer.withdraw()
            return
        sources = [rank for rank in range(comm.world_size) if rank != comm.rank]
        target = np.zeros_like(data)
        settle(comm, sources, target, job)
        say(ready=True)
        for line in sys.stdin:
            say(**timed(comm, sources, target, data, json.loads(line)["piece"]))


def settle(comm: Any, sources: list[int], target: Any, job: dict[str, Any]) -> None:
    """Until the link is known: for so long, it carries what will be measured."""
    until = time.monotonic() + job["settle_s"]
    while time.monotonic() < until:
        comm.transfers.fetch(f"in {max(job['pieces'])}", target, sources=sources, timeout=120).wait()


def timed(comm: Any, sources: list[int], target: Any, data: Any, piece: int) -> dict[str, Any]:
    """One fetch of all bytes, which are compared."""
    target[:] = 0
    result = comm.transfers.fetch(f"in {piece}", target, sources=sources, timeout=120).wait()
    if not np.array_equal(target, data):
        raise SystemExit("what was fetched is not what was offered")
    report = result.report
    return {"seconds": report.duration_s, "first_s": report.first_byte_s, "retries": report.retries}


if __name__ == "__main__":
    take_part(json.loads(sys.argv[1]))
