"""Offers and pulls: what is offered is fetched once, for as long as its lease, and never after it is gone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from integration import kv_pools
from integration.test_kv_push import WAIT_S, pair

import pccl.kv as kv
from pccl.errors import ArgumentError, Closed


def peer_of(pool: kv.Pool) -> bytes:
    return pool._transfers.peer_id


def test_what_is_offered_is_pulled_once_and_then_gone(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        offered = both.p.offer("r", [9, 8, 7], meta=b"first", lease=60.0)
        assert both.p.busy("full").tolist() == [7, 8, 9] and not offered.over()
        got = both.d.pull(peer_of(both.p), "r", [1, 2, 3]).wait(WAIT_S)
        assert got.meta == b"first" and got.committed
        for layer in range(3):
            both.check("full", layer, [1, 2, 3], [9, 8, 7])
        assert offered.wait(WAIT_S) and offered.cause == "withdrawn"
        again = both.d.pull(peer_of(both.p), "r", [1, 2, 3])
        with pytest.raises(kv.TransferFailed, match="has been pulled") as caught:
            again.wait(WAIT_S)
        assert caught.value.cause == "gone"
        both.free()


def test_pulls_of_what_is_not_offered_withdrawn_or_too_late_get_gone(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        never = both.d.pull(peer_of(both.p), "never", [1])
        with pytest.raises(kv.TransferFailed, match="nothing was offered") as caught:
            never.wait(WAIT_S)
        assert caught.value.cause == "gone"
        both.p.offer("withdrawn", [1]).withdraw()
        late = both.p.offer("late", [2], lease=0.2)
        assert late.wait(5.0) and late.cause == "lease"
        for name in ("withdrawn", "late"):
            with pytest.raises(kv.TransferFailed) as caught:
                both.d.pull(peer_of(both.p), name, [1]).wait(WAIT_S)
            assert caught.value.cause == "gone"
        both.free()
        both.p.offer("late", [2])  # the name is free again
        assert both.d.pull(peer_of(both.p), "late", [1]).wait(WAIT_S).committed


def test_one_peer_cannot_hold_too_much_and_a_full_hit_frees_the_lease(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        both.p._leases._bytes_per_peer = 2 * 3 * kv_pools.BLOCK_BYTES
        both.p.offer("large", [1, 2, 3])
        with pytest.raises(kv.TransferFailed) as caught:
            both.d.pull(peer_of(both.p), "large", [1, 2, 3]).wait(WAIT_S)
        assert caught.value.cause == "busy"
        hashes = [b"a", b"b", b"c"]
        hit = both.p.offer("hit", [1, 2, 3], hashes=hashes)
        got = both.d.pull(peer_of(both.p), "hit", [4, 5, 6], have=dict(enumerate(hashes))).wait(WAIT_S)
        assert got.nbytes == 0 and hit.wait(WAIT_S)
        assert both.p.busy("full").tolist() == [1, 2, 3]  # of the first offer


def test_a_pull_can_be_cancelled_and_tried_again(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        offered = both.p.offer("r", [1, 2])
        for _ in range(20):
            receive = both.d.pull(peer_of(both.p), "r", [3, 4])
            receive.cancel()
            if receive.poll() is kv.State.COMMITTED:
                assert offered.wait(WAIT_S)
                offered = both.p.offer("r", [1, 2])
        assert both.d.pull(peer_of(both.p), "r", [3, 4]).wait(WAIT_S).committed
        both.check("full", 2, [3, 4], [1, 2])
        assert offered.wait(WAIT_S)
        assert not both.d.busy("full").size


def test_bad_input(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        both.p.offer("r", [1])
        for call in (
            lambda: both.p.offer("r", [2]),
            lambda: both.p.offer("x", [2, 2]),
            lambda: both.p.offer("x", [2], lease=-1.0),
            lambda: both.p.offer("x", [2], hashes=[]),
            lambda: both.p.offer("x", [2], meta=bytes(1 << 17)),
            lambda: both.d.pull(b"short", "r", [1]),
            lambda: both.d.pull(peer_of(both.d), "r", [1]),
            lambda: both.d.pull(peer_of(both.p), "", [1]),
        ):
            with pytest.raises(ArgumentError):
                call()
        nobody = both.d.pull(bytes(16), "r", [1], deadline=3.0)
        with pytest.raises((kv.TransferFailed, kv.TransferExpired)):
            nobody.wait(WAIT_S)
        assert not both.d.busy("full").size


def test_a_pool_that_closes_ends_everything_and_another_of_its_name_takes_its_place(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [1, 2])
        send = both.p.open_send(receive.ticket, [1, 2])
        send.layer_ready("L0")
        offered = both.p.offer("o", [5])
        receive.wait_layer("L0", WAIT_S)
        both.p.close()
        both.p.close()
        assert offered.cause == "closed"
        with pytest.raises(kv.TransferFailed) as caught:
            send.wait(WAIT_S)
        assert caught.value.cause == "closed"
        with pytest.raises(kv.TransferFailed) as caught:
            receive.wait(WAIT_S)
        assert caught.value.cause in ("closed", "gone")
        with pytest.raises(Closed):
            both.p.offer("x", [1])
        with kv.register(both.comms[1], both.p_layout, both.p_memory) as again:
            again.offer("o", [6])
            assert both.d.pull(peer_of(again), "o", [3]).wait(WAIT_S).committed
            got = kv_pools.slab(both.d_layout, both.d_memory, "full", 0, 3)
            assert np.array_equal(got, kv_pools.slab(both.p_layout, both.p_memory, "full", 0, 6))
