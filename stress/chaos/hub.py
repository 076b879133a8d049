"""The coordinator's process of a chaos run: serves until its input ends, and writes one JSON line per decision."""

from __future__ import annotations

import faulthandler
import inspect
import json
import logging
import os
import signal
import sys
import time
from typing import Any

from pccl.coordinator.server import Coordinator


def is_durable() -> bool:
    """Whether a coordinator can keep its state in a file, and so be killed and started again."""
    return "state" in inspect.signature(Coordinator).parameters


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
    with Coordinator(bind=job["address"], secret=os.environ["PCCL_SECRET"], **job["options"]):
        say("serving", pid=os.getpid())
        for _ in sys.stdin:
            say("still serving")


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    if sys.argv[1] == "durable":
        sys.exit(0 if is_durable() else 1)
    main(json.loads(sys.argv[1]))
