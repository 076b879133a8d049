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


def test_a_pull_of_a_part_gets_that_part_and_releases_the_whole(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        hashes = [bytes([number]) for number in range(5)]
        offered = both.p.offer("r", [9, 8, 7, 6, 5], hashes=hashes)
        got = both.d.pull(peer_of(both.p), "r", [1, 2], first=2, have={1: hashes[3]}).wait(WAIT_S)
        assert got.nbytes == 3 * kv_pools.BLOCK_BYTES
        for layer in range(3):
            both.check("full", layer, [1], [7])
        both.untouched("full", [1])
        assert offered.wait(WAIT_S) and offered.free()
        nothing = both.p.offer("r", [9, 8, 7])
        assert both.d.pull(peer_of(both.p), "r", []).wait(WAIT_S).nbytes == 0
        assert nothing.wait(WAIT_S) and nothing.free()
        both.free()
        both.p.offer("r", [9, 8, 7])
        with pytest.raises(kv.TransferFailed, match="wants 2 blocks"):
            both.d.pull(peer_of(both.p), "r", [1, 2], first=2).wait(WAIT_S)
        for wrong in (-1, 1 << 20, "1", {"fool": 1}):
            with pytest.raises(ArgumentError, match="first"):
                both.d.pull(peer_of(both.p), "r", [1], first=wrong)  # type: ignore[arg-type]


def test_an_offer_is_free_when_its_last_pull_has_ended(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        offered = both.p.offer("r", [1, 2])
        assert not offered.free()
        offered.pulls(1)
        offered.withdraw()
        assert offered.wait(WAIT_S) and not offered.free()
        offered.pulls(-1)
        assert offered.free()


def test_groups_may_share_memory_whose_blocks_are_of_one_at_a_time(cluster: Any) -> None:
    groups = tuple(
        kv.Group(name=name, layers=(f"{name}.0",), bytes_per_block_layer=kv_pools.BLOCK_BYTES, block_tokens=16)
        for name in ("a", "b")
    )
    layout = kv.Layout(model_id="test/shared", groups=groups)
    chance = np.random.default_rng(4)
    source = chance.integers(0, 256, (8, kv_pools.BLOCK_BYTES), np.uint8)
    target = np.zeros_like(source)
    with kv_pools.two(cluster) as (ours, theirs):
        with (
            kv.register(ours, layout, {"a": [target], "b": [target]}) as d,
            kv.register(theirs, layout, {"a": [source], "b": [source]}) as p,
        ):
            p.offer("r", {"a": [0, 1], "b": [5]})
            assert d.pull(peer_of(p), "r", {"a": [2, 3], "b": [4]}).wait(WAIT_S).committed
    assert np.array_equal(target[[2, 3, 4]], source[[0, 1, 5]])
    assert not target[[0, 1, 5, 6, 7]].any()


def test_a_communicator_that_closes_sets_what_was_offered_free(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        offered = both.p.offer("r", [1, 2], lease=600.0)
        both.comms[1].close()
        assert offered.wait(WAIT_S) and offered.free() and offered.cause == "closed"
        assert not both.p.busy("full").size


def test_a_pull_may_be_there_before_the_offer_is(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        with pytest.raises(kv.TransferFailed, match="nothing was offered"):
            both.d.pull(peer_of(both.p), "r", [1, 2]).wait(WAIT_S)
        receive = both.d.pull(peer_of(both.p), "r", [1, 2])
        both.p.offer("r", [4, 5])
        assert receive.wait(WAIT_S).committed
        both.check("full", 2, [1, 2], [4, 5])
        cancelled = both.d.pull(peer_of(both.p), "cancelled", [1, 2])
        cancelled.cancel()
        offered = both.p.offer("cancelled", [4, 5])
        assert both.d.pull(peer_of(both.p), "cancelled", [1, 2]).wait(WAIT_S).committed
        assert offered.wait(WAIT_S)


def test_who_has_another_layout_can_release_an_offer_and_no_more(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout(block_bytes=512), kv_pools.layout()) as both:
        offered = both.p.offer("r", [1, 2])
        for into in ([3], []):
            assert not offered.over()
            with pytest.raises(kv.TransferFailed) as caught:
                both.d.pull(peer_of(both.p), "r", into).wait(WAIT_S)
            assert caught.value.cause == "layout"
        assert offered.wait(WAIT_S) and offered.free()
        both.free()


def test_a_ticket_that_comes_twice_opens_one_send(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.pull(peer_of(both.p), "r", [1, 2])
        one = kv.messages.Pull("r", receive.ticket)
        both.d._tell(lambda: both.d._post.to(peer_of(both.p)).say(one))
        kv_pools.until(lambda: both.p.counters.refused == 1)
        offered = both.p.offer("r", [4, 5])
        assert receive.wait(WAIT_S).committed
        kv_pools.until(offered.free)
        both.free()


def test_pulls_can_be_answered_by_hand(cluster: Any) -> None:
    with kv_pools.two(cluster) as comms:
        layout, memory = kv_pools.layout(), kv_pools.buffers(kv_pools.layout(), 8, 1)
        with (
            kv.register(comms[0], layout, kv_pools.buffers(layout, 8, None)) as d,
            kv.register(comms[1], layout, memory, early_s=WAIT_S) as p,
        ):
            pulls = [d.pull(peer_of(p), f"r/{n}", [2 * n, 2 * n + 1], deadline=WAIT_S) for n in range(2)]
            other = d.pull(peer_of(p), "r2/0", [7], deadline=WAIT_S)
            kv_pools.until(lambda: len(p.asked("r")) == 2 and len(p.asked("r2")) == 1)
            assert p.asked("r") == {f"r/{n}": pulls[n].ticket for n in range(2)} and p.asked("?") == {}
            send = p.open_send(p.asked("r")["r/1"], [5, 6])
            kv_pools.until(lambda: list(p.asked("r")) == ["r/0"])
            for layer in kv_pools.LAYERS:
                send.layer_ready(layer, [6])  # in pieces, as they are made
            assert not pulls[1].done()
            for layer in kv_pools.LAYERS:
                send.layer_ready(layer, [5])
            send.finish(meta=b"by hand")
            assert pulls[1].wait(WAIT_S).meta == b"by hand" and not pulls[0].done()
            p.decline("r", "it is not made after all")
            late = d.pull(peer_of(p), "r/9", [4])
            for one in (pulls[0], late):
                with pytest.raises(kv.TransferUnknown, match="not made after all") as caught:
                    one.wait(WAIT_S)
                assert caught.value.cause == "gone"
            p.expect("r")
            again = d.pull(peer_of(p), "r/9", [4], deadline=WAIT_S)
            kv_pools.until(lambda: list(p.asked("r")) == ["r/9"])
            assert p.left("r") == "" and not other.done()
            again.cancel("nobody wants it")
            kv_pools.until(lambda: p.left("r") == "aborted (nobody wants it)" and not p.asked("r"))
            p.offer("r2/0", [3])
            assert other.wait(WAIT_S).committed
            with pytest.raises(kv.TransferExpired):
                d.pull(peer_of(p), "short/0", [4], deadline=0.3).wait(WAIT_S)
            kv_pools.until(lambda: not p.asked("short") and not p._pulls._early and not p._pulls._stems)
