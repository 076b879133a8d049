"""What bad input gets: a test for each row of the table in docs/kv.md, by its number; other tests say more of some."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration import kv_pools, test_kv_staging
from integration.test_kv_push import BLOCKS, WAIT_S, Pair, pair

import pccl.kv as kv
from pccl.kv import messages as m
from pccl.kv.binding import packed
from pccl.kv.model.decide import Load, Paths, Plan, decide
from pccl.kv.simulator.trace import read
from pccl.kv.slots import SLOT_BYTES

PROFILE = kv.Profile.of("p", prefill_s=((1000, 0.1), (10_000, 1.0)), kv_bytes=((1000, 1e6), (10_000, 1e7)))
PATHS = Paths(PROFILE, PROFILE)
PLAN = Plan("offload", 0.0, 5e3, "test")


def announce(send: kv.Send) -> None:
    for layer in kv_pools.LAYERS:
        send.layer_ready(layer)
    send.finish()


def begun(both: Pair, *blocks: int) -> tuple[kv.Receive, kv.Send]:
    """A transfer whose first layer is there."""
    receive = both.d.prep_recv("r", list(blocks), deadline=WAIT_S)
    send = both.p.open_send(receive.ticket, list(blocks))
    send.layer_ready("L0")
    receive.wait_layer("L0", WAIT_S)
    return receive, send


def both_fail(receive: kv.Receive, send: kv.Send, cause: str) -> None:
    for side in (receive, send):
        with pytest.raises(kv.TransferFailed) as caught:
            side.wait(WAIT_S)
        assert caught.value.cause == cause


def test_row_1_blocks_out_of_range_twice_or_of_another_transfer(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        both.d.prep_recv("other", [7])
        for blocks, named in (
            ([0, BLOCKS], r"blocks\[1\]"),
            ([-1], r"blocks\[0\]"),
            ([1, 2, 1], r"blocks\[2\]"),
            ([6, 7], r"blocks\[1\]"),
        ):
            with pytest.raises(ValueError, match=named):
                both.d.prep_recv("r", blocks)
        assert both.d.busy("full").tolist() == [7] and both.d.counters.received_bytes == 0


def test_row_2_buffers_that_are_none(cluster: Any) -> None:
    layout, nbytes = kv_pools.layout(("L0",)), kv_pools.BLOCK_BYTES
    fixed = np.zeros(nbytes, np.uint8)
    fixed.flags.writeable = False
    with kv_pools.two(cluster) as comms:
        for wrong, error in (
            (np.zeros(nbytes - 1, np.uint8), ValueError),
            (np.zeros(nbytes // 4, np.float32), TypeError),
            (np.zeros((2, nbytes), np.uint8)[:, ::2], (ValueError, TypeError)),
            (fixed, (ValueError, TypeError)),
            (list(range(8)), (ValueError, TypeError)),
        ):
            with pytest.raises(error, match="L0"):
                kv.register(comms[0], layout, {"full": [wrong]})
        for options, named in (({"staging_bytes_max": -1}, "staging_bytes_max"), ({"early_s": 0.0}, "early_s")):
            with pytest.raises(ValueError, match=named):
                kv.register(comms[0], layout, kv_pools.buffers(layout, 1, None), **options)


def test_row_3_unknown_peers_offers_and_tickets_and_used_ones(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        peer = both.p._transfers.peer_id
        with pytest.raises(LookupError, match="nothing was offered"):
            both.d.pull(peer, "never", [1]).wait(WAIT_S)
        with pytest.raises(LookupError, match="is lost"):
            both.d.pull(b"?" * 16, "never", [1], deadline=5.0).wait(WAIT_S)
        receive = both.d.prep_recv("r", [0])
        receive.cancel()
        with pytest.raises(LookupError, match="aborted") as unknown:
            both.p.open_send(receive.ticket, [0]).wait(WAIT_S)
        assert isinstance(unknown.value, kv.TransferFailed) and not unknown.value.retriable
        with pytest.raises(kv.TicketUsed):
            both.p.open_send(receive.ticket, [0])


def test_row_4_layouts_that_differ(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout(), replace_dtype(kv_pools.layout(), "fp16")) as both:
        receive = both.d.prep_recv("r", [0])
        with pytest.raises(kv.LayoutMismatch) as caught:
            both.p.open_send(receive.ticket, [0])
        assert (caught.value.field, caught.value.ours, caught.value.theirs) == ("groups[full].dtype", "fp16", "bf16")
        with pytest.raises(kv.TransferFailed, match="dtype") as failed:
            receive.wait(WAIT_S)
        assert failed.value.cause == "layout"


def replace_dtype(layout: kv.Layout, dtype: str) -> kv.Layout:
    facts = {name: getattr(layout.groups[0], name) for name in layout.groups[0].__struct_fields__}
    return kv.Layout(model_id=layout.model_id, groups=(kv.Group(**{**facts, "dtype": dtype}),))


def test_row_5_layers_announced_twice_and_never(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive, send = begun(both, 0, 1)
        send.layer_ready("L0")  # the same bytes: nothing
        announce(send)
        assert receive.wait(WAIT_S).committed
        receive, send = begun(both, 0, 1)
        kv_pools.slab(both.p_layout, both.p_memory, "full", 0, 1)[:] += 1
        send.layer_ready("L0")
        both_fail(receive, send, "protocol")
        receive, send = begun(both, 0, 1)
        send.finish()
        both_fail(receive, send, "incomplete")


@pytest.mark.parametrize("wrong", ["beyond", "layer", "group", "digests"])
def test_row_6_messages_beyond_the_ticket_fail_their_transfer_and_no_other(cluster: Any, wrong: str) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        receive, send = begun(both, 0, 1)
        other, fine = begun(both, 2, 3)
        tid = send.transfer_id
        message = {
            "beyond": m.Ready(tid, 0, 1, packed(np.array([2]))),
            "layer": m.Ready(tid, 0, len(kv_pools.LAYERS), b""),
            "group": m.Ready(tid, 7, 0, b""),
            "digests": m.Sums(tid, 0, 1, 0, 2, b"", b"too few"),
        }[wrong]
        both.p._tell(lambda: both.p._exchange.outbound[tid].mail.say(message))
        both_fail(receive, send, "protocol")
        announce(fine)
        assert other.wait(WAIT_S).committed


@pytest.mark.parametrize("garbage", [b"\x92\xa7unknown\x01", b"\xff" * 40])
def test_row_6_what_is_no_mail_ends_the_correspondence_and_no_other(cluster: Any, garbage: bytes) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        layout = kv_pools.layout()
        with (
            kv.register(both.comms[0], layout, kv_pools.buffers(layout, 4, None), name="other") as d,
            kv.register(both.comms[1], layout, kv_pools.buffers(layout, 4, 1), name="other") as p,
        ):
            other = d.prep_recv("other", [0], deadline=WAIT_S)
            fine = p.open_send(other.ticket, [0])
            receive, send = begun(both, 0, 1)

            def say() -> None:
                mail = both.p._exchange.outbound[send.transfer_id].mail
                for number, data, ahead in mail._writer.put(garbage):
                    mail._offer(ahead)
                    mail._slots[number][: len(data)] = np.frombuffer(data, np.uint8)
                    key = mail._slot_key(mail.peer, mail._session)
                    mail._regions.quietly("extend", key, number, 0, SLOT_BYTES)

            both.p._tell(say)
            with pytest.raises(kv.TransferFailed) as caught:
                receive.wait(WAIT_S)
            assert caught.value.cause == "protocol"
            with pytest.raises(kv.TransferFailed):
                send.wait(WAIT_S)
            assert (both.d.counters.failed, both.p.counters.failed) == (1, 1)
            announce(fine)
            assert other.wait(WAIT_S).committed
        receive, send = begun(both, 0, 1)  # the next correspondence
        announce(send)
        assert receive.wait(WAIT_S).committed


def test_row_7_numbers_that_are_none(cluster: Any, tmp_path: Path) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        for options, named in (
            ({"deadline": 0.0}, "deadline"),
            ({"deadline": -1.0}, "deadline"),
            ({"deadline": math.nan}, "deadline"),
            ({"priority": -1}, "priority"),
        ):
            with pytest.raises(ValueError, match=named):
                both.d.prep_recv("r", [0], **options)
    unsorted = tmp_path / "trace.jsonl"
    unsorted.write_text(
        '{"timestamp": 2, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n'
        '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n'
    )
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: Load(math.nan), "bandwidth_bytes_per_s"),
        (lambda: kv.BandwidthEstimator(math.nan), "told_bytes_per_s"),
        (lambda: kv.Curve("prefill_s", ()), "prefill_s"),
        (lambda: Plan("offload", 0.0, -1.0, ""), "threshold_tokens"),
        (lambda: decide(1000, 0, 0, Load(1e9), PATHS, PLAN, now_s=5.0, deadline_s=4.0), "deadline_s"),
        (lambda: read(unsorted), "not sorted"),
    ]
    for call, named in calls:
        with pytest.raises(ValueError, match=named):
            call()


def test_row_8_nothing_wanted_and_everything_there_commit_at_once(cluster: Any) -> None:
    with pair(cluster, kv_pools.layout()) as both:
        peer = both.p._transfers.peer_id
        for blocks, have in (([], None), ([4, 5], {0: b"a", 1: b"b"})):
            offered = both.p.offer("r", [1, 2], hashes=[b"a", b"b"])
            got = both.d.pull(peer, "r", blocks, have=have).wait(WAIT_S)
            assert got.committed and got.nbytes == 0
            assert offered.wait(WAIT_S)
        kv_pools.until(lambda: not both.p.busy("full").size)
        both.free()


def test_row_9_a_request_longer_than_the_profile_is_flagged() -> None:
    fits = decide(9_000, 0, 0, Load(1e9), PATHS, PLAN)
    long = decide(20_000, 0, 0, Load(1e9), PATHS, PLAN)
    assert long.extrapolated and not fits.extrapolated
    assert long.predicted["local"] == pytest.approx(2.0)  # the line through the last two points


def test_row_10_no_room_is_waited_for_until_the_deadline(cluster: Any) -> None:
    with test_kv_staging.pools(cluster, 2 * test_kv_staging.BLOCK_BYTES) as (d, p):
        first = d.prep_recv("first", [0, 1], deadline=WAIT_S)
        holds = p.open_send(first.ticket, [0], convert=True)
        late, soon = (d.prep_recv(name, at, deadline=s) for name, at, s in (("l", [2, 3], 1.0), ("s", [4, 5], WAIT_S)))
        waits, comes = (p.open_send(one.ticket, [n], convert=True) for n, one in ((1, late), (2, soon)))
        for side in (late, waits):
            with pytest.raises(kv.TransferFailed) as caught:
                side.wait(WAIT_S)
            assert caught.value.cause == "no_space" and caught.value.retriable
        assert p._exchange.staging.held_bytes == 2 * test_kv_staging.BLOCK_BYTES
        announce(holds)
        announce(comes)  # back-pressure: it began when the first had ended
        assert first.wait(WAIT_S).committed and soon.wait(WAIT_S).committed


def test_row_10_pulls_that_wait_for_offers_are_not_held_without_bound(cluster: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("pccl.kv.pulls._EARLY_MAX", 1)
    with pair(cluster, kv_pools.layout()) as both:
        peer = both.p._transfers.peer_id
        both.p._pulls._early_s = WAIT_S
        waits = both.d.pull(peer, "a", [1])
        kv_pools.until(lambda: bool(both.p.asked("a")))
        with pytest.raises(kv.TransferFailed, match="wait here already") as caught:
            both.d.pull(peer, "b", [2]).wait(WAIT_S)
        assert caught.value.cause == "no_space" and caught.value.retriable
        both.p.offer("a", [5])
        assert waits.wait(WAIT_S).committed


def test_row_11_a_malformed_line_of_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = '{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n'
    path.write_text(good + "[1]\n" + good)
    with pytest.raises(ValueError, match=r"trace\.jsonl:2: "):
        read(path)
    trace = read(path, strict=False)
    assert (len(trace), trace.skipped) == (2, 1)
