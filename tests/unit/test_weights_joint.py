"""The lead of several publishers looks for a part again that was not there when it first looked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np

from pccl.errors import Closed
from pccl.types import Status
from pccl.weights import MemoryShadow, Schema, Version, base
from pccl.weights.gather import Parts
from pccl.weights.joint import Joint

WAIT_S = 20.0


class Transfers:
    """A peer that shows no line; what is asked of it is answered by another thread, as the engine would."""

    def __init__(self) -> None:
        self.asked_again = threading.Event()
        self._asked = 0
        self._answers = ThreadPoolExecutor(1)
        region = SimpleNamespace(gone=SimpleNamespace(wait=lambda _: True))
        self.offers = SimpleNamespace(offer_region=lambda *_, **__: region, quietly=lambda *_: None)

    def read(
        self, peer: bytes, key: bytes, generation: int, at: int, memory: Any, done: Callable[[Status], None], **_: Any
    ) -> object:
        self._asked += 1
        if self._asked > 1:
            self.asked_again.set()
        else:
            self._answers.submit(done, Status.EGONE)
        return object()

    def cancel_read(self, read: object) -> None:
        """Nothing is told any more."""


def test_a_part_that_is_not_there_yet_is_looked_for_again() -> None:
    weights = {"head": np.ones(64, np.float16)}
    schema = Schema.of(weights)
    baseline = MemoryShadow(schema)
    base.fill(baseline, weights)
    transfers = Transfers()
    tip = Version(0, b"\0" * 32)
    joint = Joint(transfers, "w", schema, lambda: [b"\1" * 16], baseline, tip, WAIT_S * 2)  # type: ignore[arg-type]

    def collect() -> None:
        with suppress(Closed), ThreadPoolExecutor(1) as pool:
            joint.collect(Parts(schema), pool, "auto")

    lead = threading.Thread(target=collect)
    lead.start()
    found = transfers.asked_again.wait(WAIT_S)
    joint.close()
    lead.join()
    assert found
