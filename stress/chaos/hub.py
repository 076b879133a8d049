"""A coordinator's process of a chaos run: serves, or stands by, until its input ends; one JSON line per decision."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
from contextlib import closing
from typing import Any

from pccl.coordinator.server import Coordinator
from pccl.errors import StateError

POLL_S = 0.1


def say(event: str, **facts: Any) -> None:
    os.write(1, json.dumps({"e": event, "t": round(time.monotonic(), 4), **facts}).encode() + b"\n")


class Decisions(logging.Handler):
    """The coordinator logs a decision as (group, epoch, peer, what, why); anything else is told as it is."""

    def emit(self, record: logging.LogRecord) -> None:
        facts = record.args
        if isinstance(facts, tuple) and len(facts) == 5:
            peer = str(facts[2]).removeprefix(" peer ")
            say("decision", epoch=facts[1], peer=peer, what=facts[3], reason=facts[4])
        else:
            say("log", level=record.levelname, text=record.getMessage())


def main(job: dict[str, Any]) -> None:
    log = logging.getLogger("pccl.coordinator")
    log.setLevel(logging.INFO)
    log.addHandler(Decisions())
    end = threading.Event()
    threading.Thread(target=until_input_ends, args=(end,), daemon=True).start()
    while not end.is_set():
        coordinator = Coordinator(bind=job["address"], secret=os.environ["PCCL_SECRET"], end=end, **job["options"])
        say("standing by")
        try:
            coordinator.start()
        except StateError:
            if end.is_set():
                return
            raise
        with closing(coordinator):
            say("serving", pid=os.getpid())
            while not end.wait(POLL_S) and not coordinator.deposed.is_set():
                pass
            say("serves no more")


def until_input_ends(end: threading.Event) -> None:
    for _ in sys.stdin:
        say("still here")
    end.set()


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    main(json.loads(sys.argv[1]))
