"""Which parcel is encoded next, in how much room, and when what it took is free again."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pccl.kv import messages as m
from pccl.kv import packer as module
from pccl.kv.binding import coded_key
from pccl.kv.ends import End, State
from pccl.kv.machine import Stop
from pccl.kv.packer import Packer
from pccl.kv.parcel import PARCEL_BYTES
from pccl.kv.send import Announce, Encoded, Free, SendMachine, SendUnit


class World:
    """What is around a Packer: steps of the other thread and of this one are run when a test says so."""

    def __init__(self) -> None:
        self.regions: dict[bytes, int] = {}
        self.going: list[Callable[[], None]] = []
        self.steps: list[Callable[[], None]] = []
        self.events: list[Any] = []
        self.encoded: list[str] = []
        self.packer = Packer(
            self, self.when_gone, SimpleNamespace(do=self.steps.append), lambda step: step(), self.event, lambda: 0.0
        )

    def offer_region(self, key: bytes, generation: int, data: Any, hold: Any, whole: bool) -> bytes:
        assert whole and key not in self.regions
        self.regions[key] = data.size
        return key

    def quietly(self, command: str, key: bytes, generation: int) -> None:
        assert command == "withdraw"
        del self.regions[key]

    def when_gone(self, regions: list[Any], callback: Callable[[], None]) -> None:
        self.going.append(callback)

    def event(self, one: Any, event: Any) -> None:
        self.events.append(event)
        for effect in one.machine.handle(event, 0.0):
            if isinstance(effect, Free):
                self.packer.do(one, effect)

    def encode(self, count: int = 1) -> None:
        for _ in range(count):
            self.steps.pop(0)()


class Sending:
    """A send of parcels: a position is one."""

    def __init__(self, world: World, name: str, parcels: int = 9, priority: str = "normal", deadline_at: float = 9.0):
        self.transfer, self.priority, self.since, self.deadline_at = name.encode(), priority, 0.0, deadline_at
        self.name, self.world = name, world
        need = np.ones(parcels, bool)
        unit = SendUnit(0, 0, need, PARCEL_BYTES, "bf16-exp")
        self.machine = SendMachine(m.Open(bytes(16), 1.0, ()), [unit], 0.0, deadline_at)
        self.match = SimpleNamespace(groups=[SimpleNamespace(group=0)])
        self.parcels: dict[int, Any] = {}
        self.parcel_bytes = self.wire_bytes = 0
        self.machine.handle(Announce(unit, np.arange(parcels)), 0.0)

    def encode(self, unit: Any, parts: Any) -> Any:
        self.world.encoded.append(self.name)
        return np.zeros(PARCEL_BYTES // 2, np.uint8), np.zeros(parts.size, np.uint64)


def test_the_most_urgent_is_encoded_first_even_if_it_comes_last() -> None:
    world = World()
    sends: list[Any] = [Sending(world, "bulk"), Sending(world, "soon", 1, deadline_at=1.0)]
    world.packer.pump(sends[:1], 0.0)
    assert len(world.steps) == module.AT_ONCE
    sends.append(Sending(world, "urgent", 2, "critical"))
    for _ in range(5):
        world.encode()
        world.packer.pump(sends, 0.0)
    assert world.encoded == ["bulk", "bulk", "urgent", "urgent", "soon"]


def test_parcels_are_made_as_long_as_there_is_room_and_taken_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STAGED_BYTES_EACH", 3 * PARCEL_BYTES)
    monkeypatch.setattr(module, "STAGED_BYTES", 5 * PARCEL_BYTES)
    world = World()
    one, other = Sending(world, "one"), Sending(world, "other")
    sends: list[Any] = [one, other]

    def fill() -> None:
        world.packer.pump(sends, 0.0)
        while world.steps:
            world.encode()
            world.packer.pump(sends, 0.0)

    fill()
    assert (len(one.parcels), len(other.parcels)) == (3, 2) and world.packer.crowded
    assert world.packer.ratios.of(0, "bf16-exp", 0.0) > 1.7
    world.event(one, m.Taken(bytes(16), 2))
    assert coded_key(b"one", 2) not in world.regions
    fill()
    assert (len(one.parcels), len(other.parcels)) == (2, 2)  # it may still be read
    world.going.pop()()
    fill()
    assert len(one.parcels) + len(other.parcels) == 5
    world.event(one, Stop(End(State.ABORTED, "x"), True))
    world.packer.hide(one)  # type: ignore[arg-type]
    for gone in world.going:
        gone()
    sends.remove(one)
    fill()
    assert len(other.parcels) == 3 and one.parcel_bytes == 0 and world.packer._staged_bytes == 3 * PARCEL_BYTES


def test_what_is_encoded_too_late_is_not_served_and_what_fails_ends_the_transfer(monkeypatch: Any) -> None:
    world = World()
    one: Any = Sending(world, "one")
    world.packer.pump([one], 0.0)
    world.event(one, Stop(End(State.ABORTED, "x"), True))
    world.encode(2)
    assert not world.regions and world.packer._staged_bytes == 0
    assert [type(event) for event in world.events[1:]] == [Encoded, Encoded]
    other: Any = Sending(world, "other")

    def full(unit: Any, parts: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(other, "encode", full)
    world.packer.pump([other], 0.0)
    world.encode(2)
    assert other.machine.end.cause == "no_space" and world.packer._staged_bytes == 0
