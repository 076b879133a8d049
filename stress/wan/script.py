"""Plays the timed script of a topology while commands run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from .emulator import Emulator
from .router import RouterError
from .topology import Action


def play(wan: Emulator, script: Sequence[Action], stop: threading.Event, report: Callable[[str], None]) -> None:
    """Does every action at its second after the call; returns early when `stop` is set."""
    start = time.monotonic()
    for action in script:
        if stop.wait(max(0.0, start + action.at - time.monotonic())):
            return
        try:
            wan.act(action)
        except RouterError as error:
            report(f"{action.at:g} s: {action}: {error}")
            return
        report(f"{action.at:g} s: {action}")


@contextlib.contextmanager
def playing(wan: Emulator, script: Sequence[Action], report: Callable[[str], None]) -> Iterator[None]:
    """The script runs in a thread of its own for as long as the block does."""
    stop = threading.Event()
    thread = threading.Thread(target=play, args=(wan, script, stop, report), name="wan-script")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
