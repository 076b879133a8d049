"""leisure.py - a thread for what nobody waits for: where processors are busy, others come first.

Behind a version that is durable the publisher moves its baseline and makes folds, at the moment when receivers decode,
perhaps on the same machine, and the trainer goes on.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

__all__ = ["leisure"]

NICER = 5  # a third of another thread's share where both want the same processor


def leisure() -> ThreadPoolExecutor:
    """One such thread."""
    return ThreadPoolExecutor(1, "pccl-weights-leisure", initializer=_give_way)


def _give_way() -> None:
    """Linux has priorities of threads; elsewhere, or where it is refused, all are alike."""
    if sys.platform == "linux":
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICER)
