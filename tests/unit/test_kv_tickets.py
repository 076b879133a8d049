"""Tickets and Opens from other peers: what they say comes back, what cannot be is refused, and nothing else happens."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from pccl.errors import ArgumentError, ProtocolError
from pccl.kv import messages as m
from pccl.kv.binding import packed
from pccl.kv.handles import Receive
from pccl.kv.inbound import Inbound, Wish
from pccl.kv.layout import Group, Layout
from pccl.kv.memory import Memory
from pccl.kv.outbound import needed, per_group
from pccl.kv.ticket import Ticket, Wanted

TID = bytes(range(16))
LAYOUT = Layout(
    model_id="m",
    groups=(
        Group(name="full", layers=("F0", "F1"), bytes_per_block_layer=64, block_tokens=4),
        Group(name="state", kind="state", layers=("S",), bytes_per_block_layer=10),
    ),
)


def ticket(**changes: Any) -> Ticket:
    facts: dict[str, Any] = {
        "transfer": TID, "peer": bytes(16), "pool": "kv", "request": "r", "left_s": 2.0, "priority": "normal",
        "wanted": (Wanted(3, {1: b"hash"}), Wanted(1)), "layout": LAYOUT,
    }  # fmt: skip
    return Ticket(**(facts | changes))


def test_tickets_come_back_and_damaged_ones_are_refused() -> None:
    data = ticket().encode()
    assert Ticket.decode(data) == ticket()
    chance = random.Random(1)
    for _ in range(3000):
        broken = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        try:
            Ticket.decode(bytes(broken[: chance.randint(0, len(broken))]))
        except ProtocolError:
            continue
    for wrong in (
        ticket(wanted=(Wanted(3),)),
        ticket(wanted=(Wanted(3, {3: b""}), Wanted(1))),
        ticket(wanted=(Wanted(3, {0: bytes(65)}), Wanted(1))),
        ticket(priority="urgent"),
        ticket(left_s=-1.0),
        ticket(transfer=b""),
    ):
        with pytest.raises(ProtocolError):
            Ticket.decode(wrong.encode())
    with pytest.raises(ProtocolError, match="version"):
        Ticket.decode(data.replace(b"kvticket\x02", b"kvticket\x03"))


def test_only_equal_hashes_of_the_same_position_are_not_sent() -> None:
    masks = needed(ticket(), [[b"x", b"hash", b"hash"], None])
    assert [mask.tolist() for mask in masks] == [[True, False, True], [True]]
    assert needed(ticket(), [None, None])[0].all()


def test_what_is_given_by_group_or_flat() -> None:
    assert per_group([1], ["one"], "blocks") == [[1]] and per_group({"a": 1}, ["b", "a"], "x") == [None, 1]
    assert per_group({3: b"h"}, ["one"], "have") == [{3: b"h"}]
    with pytest.raises(ArgumentError, match="by the name"):
        per_group([1], ["one", "two"], "blocks")
    with pytest.raises(ArgumentError, match="'three'"):
        per_group({"three": []}, ["one", "two"], "blocks")


def inbound() -> Inbound:
    buffers = {"full": [np.zeros(640, np.uint8) for _ in range(2)], "state": [np.zeros(40, np.uint8)]}
    blocks = [np.array([5, 6, 9], np.int64), np.array([2], np.int64)]
    wish = Wish("r", "normal", "fail", None, frozenset(("raw", "bf16-exp")))
    handle = Receive(None, 1, TID, "r", b"")  # type: ignore[arg-type]
    return Inbound(TID, Memory(LAYOUT, buffers), blocks, wish, handle, 0.0, 9.0, lambda one, event: None)


def full(**changes: Any) -> m.Grouping:
    facts: dict[str, Any] = {
        "layers": ((0, 0, 64), (1, 0, 64)), "blocks": packed(np.array([7, 5, 3])), "need": b"\x05", "tags": bytes(24)
    }  # fmt: skip
    return m.Grouping(**(facts | changes))


STATE = m.Grouping(((2, 0, 10),), bytes(4), b"", bytes(8))


def test_an_open_says_where_everything_is() -> None:
    units = inbound()._build(m.Open(TID, 1.0, (full(), STATE)))
    assert [(unit.group, unit.layer, unit.there, unit.here) for unit in units] == [
        (0, 0, 0, 0),
        (0, 1, 1, 1),
        (1, 0, 2, 2),
    ]
    assert units[0].need.tolist() == [True, False, True] and units[0].left == 2
    ask = units[0].next_ask(ahead=True)
    assert ask is not None and ask.runs.tolist() == [[7 * 64, 64, 5 * 64], [3 * 64, 64, 9 * 64]]
    assert units[2].target.tolist() == [20]


def test_an_open_may_say_that_a_group_comes_in_parcels() -> None:
    units = inbound()._build(m.Open(TID, 1.0, (full(codec="bf16-exp", layers=(), blocks=b""), STATE)))
    assert [(unit.group, unit.layer, unit.codec) for unit in units] == [
        (0, 0, "bf16-exp"), (0, 1, "bf16-exp"), (1, 0, "raw"),
    ]  # fmt: skip
    assert units[0].need.tolist() == [True, False, True] and units[0].next_ask(ahead=True) is None


@pytest.mark.parametrize(
    "groups",
    [
        (full(),),
        (full(), STATE, STATE),
        (full(blocks=bytes(8)), STATE),
        (full(blocks=bytes(16)), STATE),
        (full(blocks=bytes(11)), STATE),
        (full(layers=((0, 0, 64),)), STATE),
        (full(layers=((0, 1 << 61, 1 << 61), (1, 0, 64))), STATE),
        (full(need=b"\x05\x00"), STATE),
        (full(tags=bytes(16)), STATE),
        (full(codec="bf16-exp"), STATE),  # places are those of raw slabs
        (full(codec="int8-kc-vt", layers=(), blocks=b""), STATE),  # that was not agreed
        (full(codec="new", layers=(), blocks=b""), STATE),
        (full(layers=(), blocks=b""), STATE),
    ],
)
def test_opens_that_do_not_fit_the_ticket_are_refused(groups: tuple[m.Grouping, ...]) -> None:
    with pytest.raises(ProtocolError):
        inbound()._build(m.Open(TID, 1.0, groups))
