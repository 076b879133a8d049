"""Sends that convert share bounded memory: who finds none waits for its turn, until just before the deadline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from integration import kv_pools
from integration.test_kv_push import BLOCKS, WAIT_S

import pccl.kv as kv
from pccl.errors import ArgumentError

OURS = kv_pools.attention(block_tokens=8, heads=(2, 4, 4))
THEIRS = kv_pools.attention(block_tokens=16, heads=(0, 4, 4))
BLOCK_BYTES = OURS.groups[0].bytes_per_block_layer * len(kv_pools.LAYERS)


@contextmanager
def pools(cluster: Any, staging_bytes_max: int) -> Iterator[tuple[kv.Pool, kv.Pool]]:
    """D, and P that converts for it."""
    with kv_pools.two(cluster) as comms:
        d_memory, p_memory = kv_pools.buffers(OURS, BLOCKS, None), kv_pools.buffers(THEIRS, BLOCKS, 1)
        with (
            kv.register(comms[0], OURS, d_memory) as d,
            kv.register(comms[1], THEIRS, p_memory, staging_bytes_max=staging_bytes_max) as p,
        ):
            yield d, p


def announce(send: kv.Send) -> None:
    for layer in kv_pools.LAYERS:
        send.layer_ready(layer)
    send.finish()


def test_a_send_waits_until_others_have_set_their_memory_free(cluster: Any) -> None:
    with pools(cluster, 4 * BLOCK_BYTES) as (d, p):
        receives = [d.prep_recv(f"r{n}", [2 * n, 2 * n + 1], deadline=WAIT_S) for n in range(8)]
        sends = [p.open_send(one.ticket, [n], convert=True) for n, one in enumerate(receives)]
        kv_pools.until(lambda: p._exchange.staging.held_bytes == 4 * BLOCK_BYTES)
        for send in reversed(sends):  # what is said early counts when there is room
            announce(send)
        for receive, send in zip(receives, sends, strict=True):
            assert receive.wait(WAIT_S).committed
            send.wait(WAIT_S)
        assert p._exchange.staging.held_bytes == 0
        for n in range(8):
            got = [kv_pools.slab(OURS, {"full": d._memory.views}, "full", 0, at) for at in (2 * n, 2 * n + 1)]
            sent = kv_pools.slab(THEIRS, {"full": p._memory.views}, "full", 0, n)
            assert np.array_equal(np.concatenate(got), sent.reshape(16, 4, -1)[:, 2:4].ravel())
        assert (d.counters.committed, p.counters.committed, p.counters.late) == (8, 8, 0)


def test_without_room_until_the_deadline_both_sides_hear_no_space(cluster: Any) -> None:
    with pools(cluster, 2 * BLOCK_BYTES) as (d, p):
        first = d.prep_recv("first", [0, 1], deadline=WAIT_S)
        holds = p.open_send(first.ticket, [0], convert=True)
        late = d.prep_recv("late", [2, 3], deadline=1.0)
        waits = p.open_send(late.ticket, [1], convert=True)
        announce(waits)
        kv_pools.until(lambda: p._exchange.staging.waits(waits.transfer_id))
        for side in (late, waits):
            with pytest.raises(kv.TransferFailed, match="no room to convert") as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "no_space" and caught.value.retriable
        assert d.busy("full").tolist() == [0, 1] and p.busy("full").tolist() == [0]
        announce(holds)  # it was not disturbed
        assert first.wait(WAIT_S).committed
        again = d.prep_recv("late", [2, 3], deadline=WAIT_S)  # the cause is one that goes away
        announce(p.open_send(again.ticket, [1], convert=True))
        assert again.wait(WAIT_S).committed


def test_who_waits_can_be_aborted_and_a_pool_that_closes_leaves_nobody_waiting(cluster: Any) -> None:
    with pools(cluster, 2 * BLOCK_BYTES) as (d, p):
        first = d.prep_recv("first", [0, 1], deadline=WAIT_S)
        holds = p.open_send(first.ticket, [0], convert=True)
        second = d.prep_recv("second", [2, 3], deadline=WAIT_S)
        waits = p.open_send(second.ticket, [1], convert=True)
        third = d.prep_recv("third", [4, 5], deadline=WAIT_S)
        last = p.open_send(third.ticket, [2], convert=True)
        waits.abort("not wanted any more")
        for side in (second, waits):
            with pytest.raises(kv.TransferAborted, match="not wanted"):
                side.wait(WAIT_S)
        kv_pools.until(lambda: p._exchange.staging.waits(last.transfer_id))
        p.close()
        for side in (first, holds, last):
            with pytest.raises(kv.TransferFailed):
                side.wait(WAIT_S)
        third.cancel()  # like any ticket that nobody has opened
        assert not d.busy("full").size and p._exchange.staging.held_bytes == 0


def test_what_can_never_fit_is_refused_before_anything_happens(cluster: Any) -> None:
    with pools(cluster, 2 * BLOCK_BYTES) as (d, p):
        receive = d.prep_recv("r", [0, 1, 2, 3], deadline=WAIT_S)
        with pytest.raises(ArgumentError, match="staging_bytes_max"):
            p.open_send(receive.ticket, [0, 1], convert=True)
        assert not p.busy("full").size and receive.end is None
        receive.cancel()
