"""mutation.py - control messages that are nearly right: changed as trees of msgpack, or byte by byte.

Deterministic: the same generator and the same messages give the same mutants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

import msgspec

POOL_MAX = 2048
LEAVES_MAX = 512
NODES_MAX = 512
MESSAGE_BYTES_MAX = 1 << 16

NUMBERS = (0, 1, 2, -1, 127, 128, 255, 256, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
REALS = (0.0, -1.0, 0.5, 1e9, 1e308, float("inf"), float("nan"))
TEXTS = ("", "x", "run", "mismatch", "overdue", "sim:1", "a" * 64 + ":1", "[::1]:5", "\0", "ü" * 255, "b" * 2000)
BYTES = (b"", b"\0", b"\0" * 16, b"\xff" * 16, b"k" * 17)
OTHERS = (None, True, False, [], {}, [[]], {0: {}})

_decode = msgspec.msgpack.Decoder().decode
_encode = msgspec.msgpack.Encoder().encode
_BAD_BYTES = (msgspec.MsgspecError, ValueError, RecursionError, TypeError)


class Mutator:
    """Learns what valid traffic looks like and gives what is nearly that."""

    def __init__(self, random: Random, pool: Iterable[bytes] = ()) -> None:
        self._random = random
        self._pool: list[bytes] = []
        self._leaves: list[object] = []  # numbers, names, ids of the run: what makes a mutant meet its state
        for data in pool:
            self.learn(data)

    def learn(self, data: bytes) -> None:
        """A message as it was sent."""
        _put(self._random, self._pool, data, POOL_MAX)
        for container, key in _nodes(_tree(data)):
            value = container[key]
            if not isinstance(value, list | dict):
                _put(self._random, self._leaves, value, LEAVES_MAX)

    def mutant(self, data: bytes | None = None) -> bytes:
        """One that comes of this message, or of any that is known."""
        random = self._random
        if data is None:
            data = random.choice(self._pool)
        tree = _tree(data) if random.random() < 0.9 else None
        if not isinstance(tree, list) or not tree:
            return self._bytewise(data)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            self._change(tree)
        try:
            return _encode(tree)[:MESSAGE_BYTES_MAX]
        except (*_BAD_BYTES, OverflowError):
            return self._bytewise(data)

    # -- as a tree --------------------------------------------------------------------------------------------

    def _change(self, tree: list[Any]) -> None:
        random = self._random
        nodes = _nodes(tree)
        if not nodes:
            return
        container, key = random.choice(nodes)
        how = random.randrange(12)
        if how < 5:
            container[key] = self._near(container[key])
        elif how < 9 and self._leaves:
            kind = type(container[key])
            container[key] = next((leaf for leaf in random.choices(self._leaves, k=16) if type(leaf) is kind), None)
        elif how == 9:
            container[key] = self._part_of_another()
        elif how == 10:
            del container[key]
        elif isinstance(container, list):
            times = random.choice((1, 1, 2, 16, 300))
            container[key:key] = [container[key]] * times
        else:
            another = self._near(key)
            container[0 if isinstance(another, list | dict) else another] = container[key]

    def _near(self, value: object) -> Any:
        """Another value, mostly of the same kind."""
        random = self._random
        if random.random() < 0.03:
            return random.choice(OTHERS)
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return random.choice((value + 1, max(0, value - 1), random.choice(NUMBERS), random.getrandbits(32)))
        if isinstance(value, float):
            return random.choice(REALS)
        if isinstance(value, str):
            return random.choice((random.choice(TEXTS), value + "x", value[1:], value * 2))
        if isinstance(value, bytes):
            return random.choice((random.choice(BYTES), random.randbytes(16), value[1:], value + b"x"))
        return random.choice(NUMBERS)

    def _part_of_another(self) -> Any:
        nodes = _nodes(_tree(self._random.choice(self._pool)))
        if not nodes:
            return []
        container, key = self._random.choice(nodes)
        return container[key]

    # -- as bytes ---------------------------------------------------------------------------------------------

    def _bytewise(self, data: bytes) -> bytes:
        random, changed = self._random, bytearray(data)
        for _ in range(1 + random.randrange(4)):
            at = random.randrange(len(changed) + 1)
            how = random.randrange(5)
            if how == 0 and at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            elif how == 1 and at < len(changed):
                changed[at] = random.randrange(256)
            elif how == 2:
                del changed[at : at + 1 + random.randrange(16)]
            elif how == 3:
                changed[at:at] = random.randbytes(1 + random.randrange(8))
            else:
                other = random.choice(self._pool)
                begin = random.randrange(len(other) + 1)
                changed[at:at] = other[begin : begin + 1 + random.randrange(64)]
        return bytes(changed[:MESSAGE_BYTES_MAX])


def _tree(data: bytes) -> Any:
    try:
        return _decode(data)
    except _BAD_BYTES:
        return None


def _nodes(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in it, the nearest first."""
    found: list[tuple[Any, Any]] = []
    containers: list[Any] = [tree]
    for container in containers:
        keys: Sequence[Any] = range(len(container)) if isinstance(container, list) else ()
        for key in list(container) if isinstance(container, dict) else keys:
            if len(found) == NODES_MAX:
                return found
            found.append((container, key))
            if isinstance(container[key], list | dict):
                containers.append(container[key])
    return found


def _put(random: Random, items: list[Any], item: Any, limit: int) -> None:
    if len(items) < limit:
        items.append(item)
    else:
        items[random.randrange(limit)] = item
