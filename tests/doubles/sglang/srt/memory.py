"""The memory of a worker: pages of keys and values, states, and what goes with the first token; and what is in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang.srt.disaggregation.base.conn import KVArgs, StateType

PAGES, SLOTS, LAYERS, WIDTH, WINDOW = 160, 8, 2, 4, 6
FREE = 0xEE


class Slots:
    """Numbers that are free, from 1 on; the first is padding."""

    def __init__(self, count: int) -> None:
        self.free = list(range(1, count))

    def take(self, count: int = 1) -> list[int]:
        found, self.free = self.free[:count], self.free[count:]
        assert len(found) == count
        return found

    def give(self, ids: list[int]) -> None:
        assert not set(ids) & set(self.free)
        self.free += ids


class Memory:
    """`kinds`: which components it has besides pages: "mamba", "swa". What is free holds FREE alone."""

    def __init__(self, kinds: tuple[str, ...], page: int, rank: int) -> None:
        self.kinds, self.page, self.rank = kinds, page, rank
        self.kv = [self._made(PAGES, page * WIDTH) for _ in range(2 * LAYERS)]
        self.states = {"mamba": [self._made(SLOTS, 6), self._made(SLOTS, 10)], "swa": [self._made(PAGES, page * WIDTH)]}
        self.aux = [self._made(SLOTS, 16), self._made(SLOTS, 5), self._made(SLOTS, 8)]  # tokens, hidden, room
        self.pages, self.slots, self.windows, self.mambas = Slots(PAGES), Slots(SLOTS), Slots(PAGES), Slots(SLOTS)

    def _made(self, count: int, items: int) -> Any:
        return np.full((count, items * 4), FREE, np.uint8).view(np.int32)

    def args(self) -> KVArgs:
        made = KVArgs()
        made.engine_rank, made.pp_rank, made.system_dp_rank, made.page_size = self.rank, 0, None, self.page
        made.kv_data_ptrs, made.kv_data_lens, made.kv_item_lens = infos(self.kv)
        made.aux_data_ptrs, made.aux_data_lens, made.aux_item_lens = infos(self.aux)
        made.state_types = [StateType(kind) for kind in self.kinds]
        found = [infos(self.states[kind]) for kind in self.kinds]
        made.state_data_ptrs, made.state_data_lens, made.state_item_lens = (
            [one[which] for one in found] for which in range(3)
        )
        return made

    def take(self, tokens: int) -> dict[str, list[int]]:
        """What a request of so many tokens needs."""
        return {
            "pages": self.pages.take(-(-tokens // self.page)),
            "aux": self.slots.take(),
            "mamba": self.mambas.take() if "mamba" in self.kinds else [],
            "swa": self.windows.take(window_pages(tokens, self.page)) if "swa" in self.kinds else [],
        }

    def give(self, held: dict[str, list[int]]) -> None:
        """It is free, and nobody may write to it any more."""
        for memory, ids in (
            *((one, held["pages"]) for one in self.kv),
            *((one, held["aux"]) for one in self.aux),
            *((one, held["mamba"]) for one in self.states["mamba"]),
            *((one, held["swa"]) for one in self.states["swa"]),
        ):
            memory.view(np.uint8)[ids] = FREE
        self.pages.give(held["pages"])
        self.slots.give(held["aux"])
        self.mambas.give(held["mamba"])
        self.windows.give(held["swa"])

    def assert_free(self) -> None:
        """Nobody holds anything, and nothing was written after it was given back."""
        assert len(self.pages.free) == PAGES - 1 and len(self.slots.free) == SLOTS - 1
        for memory in (*self.kv, *self.aux, *self.states["mamba"], *self.states["swa"]):
            assert (memory.view(np.uint8) == FREE).all()

    def compute(self, prompt: list[int], begin: int, end: int, held: dict[str, list[int]]) -> None:
        """Keys and values of some tokens; the states after the last of them."""
        sums = running(prompt[:end], self.rank)
        for at in range(begin, end):
            for layer, memory in enumerate(self.kv):
                cells(memory, self.page, held["pages"], at)[:] = sums[at] + layer
        if end == len(prompt):
            if held["swa"]:
                first = window_first(len(prompt), self.page)
                for at in range(first, end):
                    cells(self.states["swa"][0], self.page, held["swa"], at - first)[:] = -sums[at]
            for number, memory in enumerate(self.states["mamba"]):
                memory[held["mamba"]] = sums[-1] * 7 + number

    def first_token(self, prompt: list[int], room: int, held: dict[str, list[int]]) -> None:
        """As the model's first."""
        (slot,) = held["aux"]
        self.aux[0][slot, 0] = running(prompt, 0)[-1] % 251
        self.aux[1][slot] = running(prompt, 0)[-1]
        self.aux[2].view(np.uint64)[slot, 0] = room

    def equals(
        self, other: Memory, prompt: list[int], mine: dict[str, list[int]], theirs: dict[str, list[int]]
    ) -> bool:
        """Whether a request looks the same in both."""
        return all(
            np.array_equal(cells(a, self.page, mine["pages"], at), cells(b, self.page, theirs["pages"], at))
            for a, b in zip(self.kv, other.kv, strict=True)
            for at in range(len(prompt))
        ) and all(
            np.array_equal(a[mine[kind]], b[theirs[kind]])
            for kind in self.kinds
            for a, b in zip(self.states[kind], other.states[kind], strict=True)
        )


def cells(memory: Any, page: int, pages: list[int], at: int) -> Any:
    """Of one token."""
    begin = at % page * WIDTH
    return memory[pages[at // page], begin : begin + WIDTH]


def running(prompt: list[int], rank: int) -> list[int]:
    """A number for every token that depends on all before it."""
    found, total = [], rank + 1
    for token in prompt:
        total = (total * 31 + token + 1) % 1000003
        found.append(total)
    return found


def window_first(tokens: int, page: int) -> int:
    """The first token of the window, at the beginning of its page."""
    return max(0, tokens - WINDOW) // page * page


def window_pages(tokens: int, page: int) -> int:
    """Pages of the window."""
    return -(-(tokens - window_first(tokens, page)) // page)


def infos(arrays: list[Any]) -> tuple[list[int], list[int], list[int]]:
    """Addresses, lengths, and lengths of an item."""
    return [a.ctypes.data for a in arrays], [a.nbytes for a in arrays], [a[0].nbytes for a in arrays]
