"""fragments.py - which parameter belongs to which fragment, and at which step a fragment is sent and lands.

Pure. Both are functions of what every peer knows (the model, the arguments, the global step), so no peer has to tell
another: `split` of names and sizes, `Schedule` of the number of an event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from pccl.errors import ArgumentError
from pccl.units import parse_bytes

__all__ = ["Event", "Kind", "Schedule", "Spec", "split"]

Spec = int | str | Callable[[str, int], int]
Kind = Literal["send", "land"]

_FORMS = "a number, 'strided:3', 'sequential:3', 'balanced:3', 'balanced:64MB' or a callable (name, bytes) -> int"


class _Unit(NamedTuple):
    """What stays together: a transformer block, or a parameter outside all blocks (`block` is then None)."""

    block: str | None
    indices: list[int]
    bytes: int


# -- parameters to fragments -----------------------------------------------------------------------------------------


def split(spec: Spec, parameters: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Per fragment, the ascending indices of its parameters; each parameter is in exactly one, none is empty.

    `parameters`: (dotted name, bytes) in the order of the model. A block is what shares the first integer of the name
    and all before it ("h.3" of "h.3.attn.weight"); blocks count from 0 in the order of the model, whatever their own
    numbers. `spec`:
    - a number P, or "balanced:P": P runs of whole blocks in model order, the largest as small as can be;
    - "balanced:64MB" (B, kB, KiB, MB, MiB, GB, GiB): runs of whole blocks, filled in order up to that many bytes. A
      block that is larger is a fragment of its own;
    - "strided:P": block b in fragment 1 + b mod P; "sequential:P": blocks in P even runs. What belongs to no block is
      fragment 0, or there is no such fragment if nothing does;
    - a callable (name, bytes) -> int: equal numbers share a fragment; fragments are in ascending order of the numbers.

    Raises ArgumentError for anything else, for no parameters, and for fewer blocks than fragments.
    """
    if not parameters:
        raise ArgumentError("fragments: the model has no parameters")
    if callable(spec):
        return _by_function(spec, parameters)
    units = _units(parameters)
    if isinstance(spec, int) and not isinstance(spec, bool):
        return _balanced(units, _positive(spec, spec))
    form, colon, value = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not colon or form not in ("strided", "sequential", "balanced"):
        raise ArgumentError(f"fragments must be {_FORMS}, not {spec!r}")
    if form == "balanced" and not value.strip().isdecimal():
        try:
            return _filled(units, parse_bytes(value))
        except ValueError as error:
            raise ArgumentError(f"fragments={spec!r}: {error}") from None
    number = _positive(value, spec)
    return _balanced(units, number) if form == "balanced" else _by_block(units, form, number)


def _positive(value: int | str, spec: Spec) -> int:
    number = int(value) if isinstance(value, int) or value.strip().isdecimal() else 0
    if number < 1:
        raise ArgumentError(f"fragments={spec!r}: the number of fragments must be an integer from 1 up")
    return number


def _block_of(name: str) -> str | None:
    """ "h.3.attn.weight" -> "h.3"; "head.weight" -> None."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return None


def _units(parameters: Sequence[tuple[str, int]]) -> list[_Unit]:
    """In model order; a block stands where its first parameter does."""
    units: dict[str | int, _Unit] = {}
    for index, (name, size) in enumerate(parameters):
        block = _block_of(name)
        key = index if block is None else block
        _, indices, before = units.get(key, _Unit(block, [], 0))
        units[key] = _Unit(block, [*indices, index], before + size)
    return list(units.values())


def _joined(runs: list[list[_Unit]]) -> list[list[int]]:
    return [sorted(index for unit in run for index in unit.indices) for run in runs]


def _by_function(spec: Callable[[str, int], int], parameters: Sequence[tuple[str, int]]) -> list[list[int]]:
    labels: dict[int, list[int]] = {}
    for index, (name, size) in enumerate(parameters):
        label = spec(name, size)
        if not isinstance(label, int):
            raise ArgumentError(f"fragments: the callable must return an int, not {label!r}, as it did for {name!r}")
        labels.setdefault(label, []).append(index)
    return [labels[label] for label in sorted(labels)]


def _by_block(units: list[_Unit], form: str, number: int) -> list[list[int]]:
    blocks = [unit for unit in units if unit.block is not None]
    others = [unit for unit in units if unit.block is None]
    if len(blocks) < number:
        raise ArgumentError(f"fragments='{form}:{number}' needs {number} blocks, and the model has {len(blocks)}")
    if form == "strided":
        runs = [blocks[fragment::number] for fragment in range(number)]
    else:
        ends = [fragment * len(blocks) // number for fragment in range(number + 1)]
        runs = [blocks[ends[fragment] : ends[fragment + 1]] for fragment in range(number)]
    return _joined([others, *runs] if others else runs)


def _balanced(units: list[_Unit], number: int) -> list[list[int]]:
    if len(units) < number:
        raise ArgumentError(
            f"{number} fragments need as many blocks or parameters outside blocks, and the model has {len(units)}"
        )
    low, high = max(unit.bytes for unit in units), sum(unit.bytes for unit in units)
    while low < high:  # the smallest limit that `number` runs can keep
        middle = (low + high) // 2
        if len(_filled(units, middle)) <= number:
            high = middle
        else:
            low = middle + 1
    return _filled(units, low, number)


def _filled(units: list[_Unit], limit: int, number: int = 1) -> list[list[int]]:
    """Runs filled in order up to the limit, and ended early where the units left are needed to make `number` runs."""
    runs: list[list[_Unit]] = [[]]
    held = 0
    for position, unit in enumerate(units):
        needed = len(units) - position <= number - len(runs)
        if runs[-1] and (held + unit.bytes > limit or needed):
            runs.append([])
            held = 0
        runs[-1].append(unit)
        held += unit.bytes
    return _joined(runs)


# -- when ------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """`round`: how often this fragment was sent before, from 0."""

    at_step: int
    kind: Kind
    fragment: int
    round: int


@dataclass(frozen=True)
class Schedule:
    """When fragments are sent and land, as one endless numbered sequence of events, from event 0.

    Fragment p is sent at the steps t > t_p with (t - t_p) mod H = 0, where t_p = p * H // P, and lands τ steps later.
    `every`: H, inner steps from one sending of a fragment to the next. `fragments`: P. `overlap`: τ, 0 to H.

    Events are in the order of steps. Within a step, with τ > 0, all lands come before all sends, so that a boundary
    finds the links idle where it can; with τ = 0 a fragment lands at once after it is sent, before the next is sent.
    Then by fragment.
    """

    every: int
    fragments: int = 1
    overlap: int = 0
    # (step within the period, kind, fragment, the period in which it comes first) of every event of a period, in order.
    _period: list[tuple[int, Kind, int, int]] = field(init=False, repr=False, compare=False)
    _first: list[tuple[int, Kind, int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ArgumentError(f"every must be 1 step at least, not {self.every}")
        if self.fragments < 1:
            raise ArgumentError(f"the number of fragments must be 1 at least, not {self.fragments}")
        if not 0 <= self.overlap <= self.every:
            raise ArgumentError(f"overlap must be from 0 to every={self.every} steps, not {self.overlap}")
        period: list[tuple[int, Kind, int, int]] = []
        for fragment in range(self.fragments):
            sent = self.every + fragment * self.every // self.fragments
            moments: list[tuple[int, Kind]] = [(sent, "send"), (sent + self.overlap, "land")]
            period += [(step % self.every, kind, fragment, step // self.every) for step, kind in moments]
        if self.overlap:
            period.sort(key=lambda entry: (entry[0], entry[1] == "send", entry[2]))
        else:
            period.sort(key=lambda entry: (entry[0], entry[2], entry[1] == "land"))
        object.__setattr__(self, "_period", period)
        object.__setattr__(self, "_first", [entry for entry in period if entry[3] == 1])

    def event(self, number: int) -> Event:
        """The event of that number, from 0; the same on every peer."""
        if number < 0:
            raise ArgumentError(f"events count from 0; there is no event {number}")
        if number < len(self._first):  # period 0 has no event, and in period 1 what lands later than it is missing
            period, entry = 1, self._first[number]
        else:
            further, place = divmod(number - len(self._first), len(self._period))
            period, entry = 2 + further, self._period[place]
        within, kind, fragment, begins = entry
        return Event(period * self.every + within, kind, fragment, period - begins)

    def events(self, first: int = 0) -> Iterator[Event]:
        """All events from that number on, without end."""
        return map(self.event, count(first))
