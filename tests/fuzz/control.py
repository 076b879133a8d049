"""control.py - the fuzzer of the control plane: hostile messages for the coordinator and for peers, in both directions.

    cd tests; python -m fuzz.control [--inputs N | --seconds S] [--seed N] [--first CASE]      (make fuzz)

An input is one message that was changed; a case is some hundred of them and the honest traffic between, on a run of its
own (world.py). Case number k of a seed is always the same. The steps of a case that fails are written to
crash-control-<seed>-<case>, which --replay takes; mended, they belong in tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import msgspec
from fuzz.mutation import Mutator
from fuzz.world import STRANGERS, Step, World

CORPUS = Path(__file__).parent / "corpus"
STEPS_PER_CASE = 400
TOLD_EVERY = 100_000


def corpus() -> list[list[Step]]:
    """All cases that are kept."""
    return [msgspec.msgpack.decode(path.read_bytes()) for path in sorted(CORPUS.iterdir())]


def messages(cases: Iterable[list[Step]]) -> list[bytes]:
    """What was said in them, either way."""
    return sorted({step[2] for steps in cases for step in steps if step[0] in ("up", "down")})


def replay(steps: list[Step]) -> None:
    """Raises what the case leads to."""
    world = World()
    try:
        for step in steps:
            world.apply(step)
        world.rescue()
    finally:
        world.close()


class Case:
    """One case, drawn from its number. `inputs`: how many messages were changed."""

    def __init__(self, seed: int, number: int, pool: Iterable[bytes]) -> None:
        self._random = Random(f"{seed}:{number}")
        self._mutator = Mutator(self._random, pool)
        self._honest = self._random.choice((0.2, 0.6, 0.9))
        self.world = World()
        self.inputs = 0

    def run(self) -> None:
        """Raises AssertionError, or whatever escapes."""
        for _ in range(STEPS_PER_CASE):
            self.world.apply(self._next())
        self.world.rescue()

    def _next(self) -> Step:
        random, world = self._random, self.world
        how = random.random()
        if how < 0.45 and world.said:
            return self._pass_on_up()
        if how < 0.75:
            return self._pass_on_down()
        if how < 0.8 and world.dialling:
            sender, address = world.dialling.popleft()
            return ["dialled", sender, random.choice((address, address, None))]
        if how < 0.9:
            return ["tick", random.choice((0.001, 0.05, 0.05, 0.5, 0.5, 2.0))]
        index = random.randrange(len(world.puppets))
        if world.puppets[index].peer.error is not None and random.random() < 0.5:
            return ["reborn", index]
        if how < 0.97:
            return [random.choice(("advance", "advance", "call", "connected")), index]
        if how < 0.975:
            return ["leave", index]
        if how < 0.995:
            return [random.choice(("lost", "back")), random.randrange(STRANGERS)]
        return ["restart"]

    def _pass_on_up(self) -> Step:
        random = self._random
        sender, data = self.world.said.popleft()
        self._mutator.learn(data)
        if random.random() < self._honest:
            return ["up", sender, data]
        if random.random() < 0.5:
            sender = random.randrange(STRANGERS)
        return ["up", sender, self._changed(data)]

    def _pass_on_down(self) -> Step:
        random = self._random
        puppet = random.choice(self.world.puppets)
        data = puppet.inbox.popleft() if puppet.inbox else None
        if data is None:
            return ["up", random.randrange(STRANGERS), self._changed(None)]
        self._mutator.learn(data)
        return ["down", puppet.index, data if random.random() < self._honest else self._changed(data)]

    def _changed(self, data: bytes | None) -> bytes:
        self.inputs += 1
        return self._mutator.mutant(data if self._random.random() < 0.7 else None)


def fuzz(seed: int, *, inputs: int | None, seconds: float | None, first: int = 0) -> int:
    """Runs cases until there were so many inputs, or for so long; returns how many there were. Raises what escapes."""
    pool, begin, count, number = messages(corpus()), time.monotonic(), 0, first
    while (inputs is None or count < inputs) and (seconds is None or time.monotonic() < begin + seconds):
        case = Case(seed, number, pool)
        try:
            case.run()
        except BaseException:
            path = Path(f"crash-control-{seed}-{number}")
            path.write_bytes(msgspec.msgpack.encode(case.world.steps))
            print(f"control: case {number} of seed {seed} fails, its steps are in {path}", flush=True)
            raise
        finally:
            case.world.close()
        if (count + case.inputs) // TOLD_EVERY > count // TOLD_EVERY:
            _tell(count + case.inputs, number + 1 - first, time.monotonic() - begin)
        count += case.inputs
        number += 1
    _tell(count, number - first, time.monotonic() - begin)
    return count


def _tell(count: int, cases: int, seconds: float) -> None:
    rate = count / max(seconds, 1e-9)
    print(f"control: {count} inputs in {cases} cases and {seconds:.0f} s, {rate:.0f}/s", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fuzz.control")
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="Number of the first case.")
    parser.add_argument("--replay", type=Path, help="A case that failed.")
    given = parser.parse_args()
    if given.replay is not None:
        replay(msgspec.msgpack.decode(given.replay.read_bytes()))
        return
    print(f"control: seed {given.seed}", flush=True)
    default = 60.0 if given.inputs is None and given.seconds is None else given.seconds
    fuzz(given.seed, inputs=given.inputs, seconds=default, first=given.first)


if __name__ == "__main__":
    sys.exit(main())
