"""For all tests: what there is once they are collected is left alone by the garbage collector.

That is a million objects (torch, the tests themselves), which every full collection would look at again; tests that
make and drop whole clusters cause many, and took up to twice as long.
"""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
