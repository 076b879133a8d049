"""Pushes between pools: what arrives, in which blocks, layer by layer; what is refused; how they end on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from integration import kv_pools

import pccl.kv as kv
from pccl.errors import ArgumentError, Timeout

BLOCKS = 64
WAIT_S = 20.0


class Pair:
    """P has content, D has zeros."""

    def __init__(self, comms: Any, ours: kv.Layout, theirs: kv.Layout | None = None) -> None:
        self.comms = comms
        self.d_layout, self.p_layout = ours, theirs or ours
        self.d_memory = kv_pools.buffers(self.d_layout, BLOCKS, None)
        self.p_memory = kv_pools.buffers(self.p_layout, BLOCKS, 1)
        self.d = kv.register(comms[0], self.d_layout, self.d_memory)
        self.p = kv.register(comms[1], self.p_layout, self.p_memory)

    def check(self, group: str, layer: int, to: list[int], source: list[int]) -> None:
        for mine, theirs in zip(to, source, strict=True):
            got = kv_pools.slab(self.d_layout, self.d_memory, group, layer, mine)
            assert np.array_equal(got, kv_pools.slab(self.p_layout, self.p_memory, group, layer, theirs))

    def untouched(self, group: str, but: list[int]) -> None:
        for block in set(range(BLOCKS)) - set(but):
            for layer in range(len(self.d_layout.groups[self.d_layout.group_index[group]].layers)):
                assert not kv_pools.slab(self.d_layout, self.d_memory, group, layer, block).any()

    def free(self) -> None:
        for pool in (self.d, self.p):
            assert not any(pool.busy(group.name).size for group in pool.layout.groups)


@contextmanager
def pair(cluster: Any, ours: kv.Layout, theirs: kv.Layout | None = None, **options: Any) -> Iterator[Pair]:
    with kv_pools.two(cluster, **options) as comms:
        made = Pair(comms, ours, theirs)
        with made.d, made.p:
            yield made


def test_blocks_arrive_where_they_are_wanted_and_nowhere_else(cluster: Any) -> None:
    chance = np.random.default_rng(3)
    with pair(cluster, kv_pools.layout()) as both:
        for _ in range(3):
            to = chance.permutation(BLOCKS)[:40].tolist()
            source = chance.permutation(BLOCKS)[:40].tolist()
            receive = both.d.prep_recv("r", to)
            send = both.p.open_send(receive.ticket, source)
            assert sorted(both.d.busy("full").tolist()) == sorted(to)
            for layer in kv_pools.LAYERS:
                send.layer_ready(layer)
            send.finish(first_token=17, meta=b"more")
            got = receive.wait(WAIT_S)
            assert got.committed and got.meta == (17).to_bytes(8, "little") + b"more"
            assert got.nbytes == 40 * 3 * kv_pools.BLOCK_BYTES
            assert send.wait(WAIT_S).nbytes == got.nbytes
            for layer in range(3):
                both.check("full", layer, to, source)
            both.untouched("full", to)
            both.free()
            for memory in both.d_memory["full"]:
                memory[:] = 0
        assert (both.d.counters.committed, both.p.counters.committed) == (3, 3)


def test_a_layer_can_be_used_before_the_others_are_ready(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [5, 4, 3])
        send = both.p.open_send(receive.ticket, [7, 8, 9])
        send.layer_ready("L1", [8])
        send.layer_ready("L1", [9, 7])
        receive.wait_layer("L1", WAIT_S)
        both.check("full", 1, [5, 4, 3], [7, 8, 9])
        assert not kv_pools.slab(both.d_layout, both.d_memory, "full", 0, 5).any()
        with pytest.raises(Timeout):
            receive.wait_layer("L0", 0.05)
        assert receive.poll() is kv.State.STREAMING and send.poll() is kv.State.STREAMING
        send.layer_ready("L0")
        send.layer_ready("L2")
        send.finish()
        receive.wait(WAIT_S)
        send.wait(WAIT_S)
        both.check("full", 0, [5, 4, 3], [7, 8, 9])


def test_groups_of_other_kinds_layers_of_another_order_and_a_part_of_the_layers(cluster: Any) -> None:
    with pair(cluster, kv_pools.hybrid()) as both:
        receive = both.d.prep_recv("r", {"full": [1, 2], "state": [9]})
        send = both.p.open_send(receive.ticket, {"full": [4, 3], "state": [0]})
        for layer in ("S2", "S0", "F1", "S1", "F0"):
            send.layer_ready(layer)
        send.finish()
        receive.wait(WAIT_S)
        send.wait(WAIT_S)
        for layer in range(2):
            both.check("full", layer, [1, 2], [4, 3])
        for layer in range(3):
            both.check("state", layer, [9], [0])
    two_layers = kv_pools.layout(("L2", "L0"))
    with pair(cluster, two_layers, kv_pools.layout(order="block_first")) as both:
        receive = both.d.prep_recv("r", [1, 2, 3])
        send = both.p.open_send(receive.ticket, [4, 5, 6])
        send.layer_ready("L0")
        send.layer_ready("L2")
        send.finish()
        receive.wait(WAIT_S)
        for mine, theirs in ((0, 2), (1, 0)):
            got = kv_pools.slab(both.d_layout, both.d_memory, "full", mine, 2)
            assert np.array_equal(got, kv_pools.slab(both.p_layout, both.p_memory, "full", theirs, 5))


def test_what_is_there_already_is_not_sent_and_a_full_hit_commits_at_once(cluster: Any) -> None:
    hashes = [bytes([number]) * 32 for number in range(4)]
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [0, 1, 2, 3], have={1: hashes[1], 2: b"another"})
        send = both.p.open_send(receive.ticket, [10, 11, 12, 13], hashes=hashes)
        for layer in kv_pools.LAYERS:
            send.layer_ready(layer)
        send.finish()
        assert receive.wait(WAIT_S).nbytes == 3 * 3 * kv_pools.BLOCK_BYTES
        send.wait(WAIT_S)  # its blocks are free when nothing of them is read any more, which is later than the commit
        both.check("full", 0, [0, 2, 3], [10, 12, 13])
        assert not kv_pools.slab(both.d_layout, both.d_memory, "full", 0, 1).any()
        for wanted, have in (([0, 1], {0: hashes[0], 1: hashes[1]}), ([], {})):
            receive = both.d.prep_recv("r", wanted, have=have)
            send = both.p.open_send(receive.ticket, [10, 11][: len(wanted)], hashes=hashes[: len(wanted)])
            send.finish()
            assert receive.wait(WAIT_S).nbytes == 0
            send.wait(WAIT_S)
            both.free()


def test_aborts_reach_the_other_side_at_once_and_set_all_blocks_free(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        send.abort("client went away")
        for side in (send, receive):
            with pytest.raises(kv.TransferAborted, match="client went away") as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "client went away"
        both.free()
        receive = both.d.prep_recv("r", [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        assert receive.cancel("slow")
        assert not receive.cancel()
        with pytest.raises(kv.TransferAborted, match="slow"):
            send.wait(WAIT_S)
        send.layer_ready("L1")  # too late: counted, never raised
        send.finish()
        send.abort()
        both.free()
        receive = both.d.prep_recv("r", [2])
        assert receive.cancel()  # nobody had opened it
        with pytest.raises(kv.TransferFailed, match="aborted") as refused:
            both.p.open_send(receive.ticket, [0]).wait(WAIT_S)
        assert refused.value.cause == "ticket"
        both.free()


def test_what_is_never_ready_and_what_is_announced_twice(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        send.layer_ready("L0")
        send.layer_ready("L1")
        send.finish()
        for side in (send, receive):
            with pytest.raises(kv.TransferFailed, match="never ready") as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "incomplete"
        receive = both.d.prep_recv("r", [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        kv_pools.slab(both.p_layout, both.p_memory, "full", 0, 1)[:] += 1
        send.layer_ready("L0")
        for side in (send, receive):
            with pytest.raises(kv.TransferFailed, match="other bytes") as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "protocol"
        both.free()


def test_bytes_that_change_while_they_are_sent_fail_the_transfer(cluster: Any) -> None:
    """They were digested as others: what D has is not what P said."""
    with pair(cluster, kv_pools.layout(("L0", "L1"), 1 << 20)) as both:
        receive = both.d.prep_recv("r", [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        both.d_memory["full"][0][:] = 0
        unit = both.p._exchange.outbound[send.transfer_id].units["L1"]
        original = both.p._exchange._hasher.put

        def wrong(job: Any) -> None:
            original(type(job)(job.view, job.offsets, job.nbytes, job.seeds ^ np.uint64(1), job.done))

        both.p._exchange._hasher.put = wrong
        assert not unit.ready.any()
        send.layer_ready("L1")
        for side in (send, receive):
            with pytest.raises(kv.TransferFailed, match="wrong twice") as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "checksum"
        both.free()


def test_deadlines_end_both_sides(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [0], deadline=0.3)
        with pytest.raises(kv.TransferExpired, match="nobody has opened"):
            receive.wait(2.0)
        receive = both.d.prep_recv("r", [0], deadline=0.5)
        send = both.p.open_send(receive.ticket, [0])
        send.layer_ready("L0")
        for side in (receive, send):
            with pytest.raises(kv.TransferExpired) as caught:
                side.wait(2.0)
            assert caught.value.cause == "deadline"
        both.free()
        receive = both.d.prep_recv("r", [0, 2], deadline=0.3, on_failure="recompute")
        got = receive.wait(2.0)
        assert not got.committed and got.end.state is kv.State.EXPIRED
        assert got.recompute["full"].tolist() == [0, 1]


def test_a_hedged_receive_is_given_up_on_while_it_goes_on(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive = both.d.prep_recv("r", [3, 4], deadline=WAIT_S, on_failure="hedge", hedge_after=2.0)
        send = both.p.open_send(receive.ticket, [0, 1])
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        got = receive.wait(WAIT_S)
        assert not got.committed and got.end.state is kv.State.STREAMING
        assert got.recompute["full"].tolist() == [0, 1] and both.d.busy("full").tolist() == [3, 4]
        for layer in ("L1", "L2"):
            send.layer_ready(layer)
        send.finish()
        send.wait(WAIT_S)  # it came, and was of no use
        kv_pools.until(lambda: receive.poll() is kv.State.COMMITTED)
        both.free()


def test_bad_input_is_refused_before_any_byte_moves(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        for blocks, text in (
            ([0, BLOCKS], r"blocks\[1\]"),
            ([-1], r"blocks\[0\]"),
            ([1, 2, 1], r"blocks\[2\]"),
            ({"fool": [1]}, "fool"),
        ):
            with pytest.raises(ArgumentError, match=text):
                both.d.prep_recv("r", blocks)
        for options, text in (
            ({"deadline": 0.0}, "deadline"),
            ({"deadline": -1.0}, "deadline"),
            ({"deadline": float("nan")}, "deadline"),
            ({"priority": "urgent"}, "priority"),
            ({"have": {2: b"x"}}, "position 2"),
            ({"on_failure": "hedge"}, "hedge_after"),
            ({"on_failure": "never"}, "on_failure"),
        ):
            with pytest.raises(ArgumentError, match=text):
                both.d.prep_recv("r", [0, 1], **options)
        both.free()
        receive = both.d.prep_recv("r", [0, 1])
        with pytest.raises(ArgumentError, match=r"blocks\[1\].*another transfer"):
            both.d.prep_recv("other", [2, 1])
        for blocks, text in (([0], "wants 2 blocks"), ([0, BLOCKS], r"blocks\[1\]"), ([3, 3], r"blocks\[1\]")):
            with pytest.raises(ArgumentError, match=text):
                both.p.open_send(receive.ticket, blocks)
        with pytest.raises(ArgumentError, match="hashes"):
            both.p.open_send(receive.ticket, [0, 1], hashes=[b"x"])
        with pytest.raises(ArgumentError, match="this very peer"):
            both.d.open_send(receive.ticket, [0, 1])
        send = both.p.open_send(receive.ticket, [0, 1])
        with pytest.raises(kv.TicketUsed):
            both.p.open_send(receive.ticket, [2, 3])
        with pytest.raises(ArgumentError, match="no layer 'L9'"):
            send.layer_ready("L9")
        with pytest.raises(ArgumentError, match=r"blocks\[1\] is 5"):
            send.layer_ready("L0", [1, 5])
        send.abort()
        for side in (receive, send):
            with pytest.raises(kv.TransferAborted):
                side.wait(WAIT_S)
        both.free()


def test_layouts_that_differ_end_both_sides_by_the_name_of_the_field(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout(), kv_pools.layout(block_bytes=2 * kv_pools.BLOCK_BYTES)) as both:
        receive = both.d.prep_recv("r", [0])
        with pytest.raises(kv.LayoutMismatch) as caught:
            both.p.open_send(receive.ticket, [0])
        assert "unit_bytes" in caught.value.field
        with pytest.raises(kv.TransferFailed, match="unit_bytes") as failed:
            receive.wait(WAIT_S)
        assert failed.value.cause == "layout"
        both.free()


def test_layouts_that_differ_in_what_can_be_converted_meet_if_the_sender_wants(cluster: Any) -> None:
    """Half of the heads, and blocks of half the tokens: the sender lays its bytes out as the receiver's."""
    ours = kv_pools.attention(block_tokens=8, heads=(2, 4, 4))
    theirs = kv_pools.attention(block_tokens=16, heads=(0, 4, 4))
    with pair(cluster, ours, theirs) as both:
        receive = both.d.prep_recv("r", [4, 5, 6])
        with pytest.raises(kv.LayoutMismatch):
            both.p.open_send(receive.ticket, [1, 2])
        with pytest.raises(kv.TransferFailed, match="differ"):
            receive.wait(WAIT_S)
        receive = both.d.prep_recv("r", [4, 5, 6])
        with pytest.raises(ArgumentError, match="wants 2 blocks"):
            both.p.open_send(receive.ticket, [1, 2, 3], convert=True)
        send = both.p.open_send(receive.ticket, [1, 2], convert=True)
        with pytest.raises(ArgumentError, match="all of its blocks"):
            send.layer_ready("L0", [1])
        for layer in kv_pools.LAYERS:
            send.layer_ready(layer)
        send.finish()
        receive.wait(WAIT_S)
        send.wait(WAIT_S)
        for layer in range(3):
            sent = np.concatenate([kv_pools.slab(theirs, both.p_memory, "full", layer, b) for b in (1, 2)])
            by_head = sent.reshape(2, 16, 4, -1)[:, :, 2:4].reshape(4, 8 * 2 * kv_pools.UNIT)
            for position, block in enumerate([4, 5, 6]):
                got = kv_pools.slab(ours, both.d_memory, "full", layer, block)
                assert np.array_equal(got, by_head[position])
        both.free()
