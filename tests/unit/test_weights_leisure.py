"""Work that nobody waits for gives way to what others wait for."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from pccl.weights.leisure import NICER, leisure


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_its_thread_is_nicer_and_no_other() -> None:
    before = priority()
    with leisure() as pool:
        assert pool.submit(priority).result() == min(19, before + NICER)
    assert priority() == before
