"""Both sides of a KV transfer as machines, driven in an order that chance makes, and how they must end."""

from __future__ import annotations

import random
from typing import Any

from pccl.kv.ends import End, State
from pccl.kv.machine import Stop, Tick

TERMINAL = (State.COMMITTED, State.ABORTED, State.EXPIRED, State.FAILED)


def walk(both: Any, chance: random.Random, script: list[Any], steps_max: int) -> None:
    """Plays the script amid whatever is possible, perhaps with an end by either side: both end once, and alike.

    `both`: has `tell`, `possible`, `steps`, `now`, `ends` by side.
    """
    fault = chance.choice(["none", "abort", "cancel", "both"])
    for side, name in (("p", "abort"), ("d", "cancel")):
        if fault in (name, "both"):
            stop = Stop(End(State.ABORTED, name), True)
            script.insert(chance.randint(0, 4), lambda side=side, stop=stop: both.tell(side, stop))
    for _ in range(steps_max):
        choices = both.possible() + script[:1]
        step = chance.choice(choices)
        if script and step is script[0]:
            script.pop(0)
        step()
        if len(both.ends) == 2:
            break
    if len(both.ends) < 2:  # a side that was told nothing: its time is over
        both.now = 20.0
        for _ in range(2):
            both.tell("d", Tick())
            both.tell("p", Tick())
            while both.steps:
                both.steps.pop(0)()
    assert set(both.ends) == {"p", "d"}
    states = {side: end.state for side, end in both.ends.items()}
    assert all(state in TERMINAL for state in states.values())
    if fault == "none":
        assert set(states.values()) == {State.COMMITTED}
    assert (states["p"] is State.COMMITTED) <= (states["d"] is State.COMMITTED)
