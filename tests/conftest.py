"""For all tests: what there is once they are collected is left alone by the garbage collector, and none is timed.

That is a million objects (torch, the tests themselves), which every full collection would look at again; tests that
make and drop whole clusters cause many, and took up to twice as long. How long an example of hypothesis takes says on
a shared machine what else it does. And Ctrl-C works: a script that runs tests in its background has them, and all that
they start, ignore SIGINT, which some tests send.
"""

from __future__ import annotations

import gc
import signal

from hypothesis import HealthCheck, settings

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_configure() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
