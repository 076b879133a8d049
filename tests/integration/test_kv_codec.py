"""Blocks that do not travel raw: without loss every bit, with loss if both want it; aborts, damage, hostile peers."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from integration import kv_pools
from integration.test_kv_push import WAIT_S, Pair, pair

import pccl.kv as kv
from pccl.errors import ArgumentError
from pccl.kv import packer
from pccl.kv.codecs import CODECS
from pccl.kv.outbound import Outbound

LAYERS = ("L0", "L1", "L2")
BLOCKS = 64
EVERY = ("int8-kc-vt", "bf16-exp", "raw")


def layout(tokens: int = 16, order: Any = "layer_first", codec_ok: tuple[str, ...] = EVERY, **more: Any) -> kv.Layout:
    """Keys and values of 4 heads, and a recurrent state of odd size."""
    size = 2 * tokens * 4 * 128
    facts = {"block_tokens": tokens, "heads": (0, 4, 4), "planes": 2, "order": order} | more
    full = kv.Group(name="full", layers=LAYERS, bytes_per_block_layer=size, **facts)
    state = kv.Group(name="state", kind="state", layers=("S",), bytes_per_block_layer=1001)
    return kv.Layout(model_id="test/codec", groups=(full, state), codec_ok=codec_ok)


def normal(both: Pair) -> None:
    """P's full attention holds values of a normal distribution."""
    chance = np.random.default_rng(5)
    held = both.p_memory["full"]
    for memory in held if isinstance(held, list) else [held]:
        values = chance.standard_normal(memory.size // 2, np.float32)
        memory[:] = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


@contextmanager
def caches(cluster: Any, ours: kv.Layout | None = None, **options: Any) -> Iterator[Pair]:
    with pair(cluster, ours or layout(), **options) as both:
        normal(both)
        yield both


def push(both: Pair, to: list[int], source: list[int], wants: Any = "auto", sends: Any = "auto", **more: Any) -> Any:
    """All layers, in two chunks each; what both sides were given."""
    receive = both.d.prep_recv("r", {"full": to, "state": [3]}, codec=wants)
    send = both.p.open_send(receive.ticket, {"full": source, "state": [4]}, codec=sends, **more)
    send.layer_ready("S")
    for layer in LAYERS:
        send.layer_ready(layer, source[::2])
        send.layer_ready(layer, source)
    send.finish(first_token=1)
    return receive.wait(WAIT_S), send.wait(WAIT_S)


def freed(both: Pair) -> None:
    """The other side has heard of it, too."""
    kv_pools.until(lambda: not any(pool.busy("full").size for pool in (both.d, both.p)))
    both.free()


def blocks(seed: int, count: int = 40) -> list[int]:
    return list(np.random.default_rng(seed).permutation(BLOCKS)[:count].tolist())


@pytest.mark.parametrize("order", ["layer_first", "block_first"])
@pytest.mark.parametrize("tokens", [16, 512])  # of 512, eight blocks are a parcel
def test_without_loss_every_bit_arrives_where_it_is_wanted(cluster: Any, tokens: int, order: Any) -> None:
    to, source = blocks(1, 9), blocks(2, 9)
    with caches(cluster, layout(tokens, order)) as both:
        received, sent = push(both, to, source, sends="bf16")
        assert received.committed and received.nbytes == sent.nbytes
        assert received.wire_bytes == sent.wire_bytes < 0.8 * received.nbytes
        for layer in range(3):
            both.check("full", layer, to, source)
        both.check("state", 0, [3], [4])
        both.untouched("full", to)
        both.free()
        again, _ = push(both, to, source, wants="bf16")  # the other side may want it, too
        assert again.wire_bytes == received.wire_bytes


def test_slabs_of_many_parts_come_in_many_parcels(cluster: Any) -> None:
    slab = 12 << 20
    group = kv.Group(name="full", layers=("L",), bytes_per_block_layer=slab, block_tokens=16)
    values = np.random.default_rng(5).standard_normal(3 * slab // 2, np.float32)
    source = (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    target = np.zeros_like(source)
    of = kv.Layout(model_id="large", groups=(group,))
    with kv_pools.two(cluster) as comms:
        with kv.register(comms[0], of, {"full": [target]}) as d, kv.register(comms[1], of, {"full": [source]}) as p:
            receive = d.prep_recv("r", [2, 0])
            send = p.open_send(receive.ticket, [1, 2], codec="bf16")
            send.layer_ready("L")
            send.finish()
            got = receive.wait(WAIT_S)
            assert got.nbytes == 2 * slab and got.wire_bytes < 0.8 * got.nbytes
            assert np.array_equal(target[2 * slab :], source[slab : 2 * slab])
            assert np.array_equal(target[:slab], source[2 * slab :]) and not target[slab : 2 * slab].any()


def test_a_loss_takes_both_sides_and_what_arrives_is_near(cluster: Any) -> None:
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        for wants, sends in (("int8", "auto"), ("auto", "int8"), ("int8", "bf16"), ("int8", "raw")):
            received, _ = push(both, to, source, wants, sends)
            for layer in range(3):
                both.check("full", layer, to, source)
            assert (received.wire_bytes < received.nbytes) is ("bf16" in (wants, sends))
        received, sent = push(both, to, source, "int8", "int8")
        assert received.wire_bytes == sent.wire_bytes < 0.6 * received.nbytes
        both.check("state", 0, [3], [4])
        group = both.d_layout.groups[0]
        for mine, theirs in zip(to, source, strict=True):
            got = kv_pools.slab(both.d_layout, both.d_memory, "full", 1, mine)
            have = kv_pools.slab(both.p_layout, both.p_memory, "full", 1, theirs).reshape(1, -1)
            there = np.empty_like(have)
            CODECS["int8-kc-vt"].decode(CODECS["int8-kc-vt"].encode(have, group), there, group)
            assert np.array_equal(got, there[0]) and not np.array_equal(got, have[0])
        both.free()


def test_what_was_not_agreed_is_refused_by_name(cluster: Any) -> None:
    with caches(cluster, layout(codec_ok=("raw",))) as both:
        for call in (
            lambda: both.d.prep_recv("r", {"full": [1]}, codec="bf16"),
            lambda: both.p.offer("r", {"full": [1]}, codec="int8"),
            lambda: both.d.pull(bytes(16), "r", {"full": [1]}, codec="int8"),
            lambda: both.p.open_send(both.d.prep_recv("t", {"full": [9]}).ticket, {"full": [1]}, codec="int8"),
        ):
            with pytest.raises(ArgumentError, match="codec_ok lacks"):
                call()
        with pytest.raises(ArgumentError, match="codec must be one of auto, raw, bf16, int8, not 'zip'"):
            both.d.prep_recv("r", {"full": [1]}, codec="zip")  # type: ignore[arg-type]
        received, _ = push(both, [1, 2], [3, 4])
        assert received.wire_bytes == received.nbytes


def test_pulls_travel_so_too_and_only_what_is_not_there(cluster: Any) -> None:
    with caches(cluster) as both:
        hashes = {"full": [b"a", b"b", b"c"]}
        both.p.offer("r", {"full": [9, 8, 7], "state": [1]}, hashes=hashes, codec="bf16", meta=b"m")
        have = {"full": {1: b"b"}}
        peer = both.p._transfers.peer_id
        got = both.d.pull(peer, "r", {"full": [1, 2, 3], "state": [1]}, have=have).wait(WAIT_S)
        assert got.meta == b"m" and got.wire_bytes < 0.8 * got.nbytes
        for layer in range(3):
            both.check("full", layer, [1, 3], [9, 7])
        both.untouched("full", [1, 3])


def test_layers_can_be_used_before_the_others_are_ready(cluster: Any) -> None:
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        receive = both.d.prep_recv("r", {"full": to})
        send = both.p.open_send(receive.ticket, {"full": source}, codec="bf16")
        for number, layer in enumerate(LAYERS):
            send.layer_ready(layer)
            receive.wait_layer(layer, WAIT_S)
            both.check("full", number, to, source)
        send.finish()
        receive.wait(WAIT_S)
        send.wait(WAIT_S)
        both.free()


def test_auto_takes_what_is_quicker_on_the_link_that_the_receiver_sees(cluster: Any) -> None:
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        peer = both.d._transfers.peer_id
        both.p._around.sends_bytes_per_s = lambda _: 0.0  # type: ignore[method-assign]
        both.p._speeds = dict.fromkeys(both.p._speeds, (4000000000.0, 4000000000.0))
        both.d._speeds = dict(both.p._speeds)
        exchange = both.p._exchange
        for rate, is_coded in ((0.0, False), (1e6, True), (3.9e9, False)):
            exchange.told_bytes_per_s[peer] = rate
            received, _ = push(both, to, source)
            assert (received.wire_bytes < received.nbytes) is is_coded, rate
        rounds = 0
        while not both.d.estimate(both.p._transfers.peer_id):  # a tenth of a second of bytes makes an estimate
            push(both, to, source, wants="raw")
            assert (rounds := rounds + 1) < 2000
        push(both, to, source, wants="raw")
        assert exchange.told_bytes_per_s[peer] == pytest.approx(
            both.d.estimate(both.p._transfers.peer_id).bandwidth_bytes_per_s, rel=0.5
        )


def test_time_without_a_transfer_makes_no_link_slow(cluster: Any) -> None:
    """The watch hears that nothing is asked for any more, though nobody is left who would ask."""
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        push(both, to, source, wants="raw")
        watch, idle = both.d._exchange.watches[both.p._transfers.peer_id], threading.Event()
        busy = watch.busy

        def seen(asked_bytes: int, rtt_s: float, now_s: float) -> None:
            busy(asked_bytes, rtt_s, now_s)
            (idle.clear if asked_bytes else idle.set)()

        watch.busy = seen  # type: ignore[method-assign]
        # As at the end of a long push, whose last bytes end it before anybody looks again.
        both.d._tell(lambda: watch.busy(1, 0.0, time.monotonic()))
        assert idle.wait(WAIT_S)
        assert watch._since is None


def test_values_that_do_not_get_smaller_go_raw_from_the_second_time_on(cluster: Any) -> None:
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        for memory in both.p_memory["full"]:
            memory[:] = np.random.default_rng(7).integers(0, 256, memory.size, np.uint8)
        both.p._exchange.told_bytes_per_s[both.d._transfers.peer_id] = 1e6
        both.p._exchange._told_rate = lambda peer, rate: None  # type: ignore[method-assign]
        ratios = []
        for _ in range(12):
            received, _ = push(both, to, source)
            ratios.append(received.wire_bytes / received.nbytes)
            for layer in range(3):
                both.check("full", layer, to, source)
        assert ratios[0] > 1.0 and ratios[-1] == 1.0


def test_parcels_wait_for_room_and_all_arrive(cluster: Any, monkeypatch: Any) -> None:
    """One parcel at a time: every one needs the word that the last was taken."""
    monkeypatch.setattr(packer, "STAGED_BYTES", 1)
    to, source = blocks(1, 30), blocks(2, 30)
    with caches(cluster, layout(tokens=512)) as both:
        received, _ = push(both, to, source, sends="bf16")
        assert received.wire_bytes < 0.8 * received.nbytes
        for layer in range(3):
            both.check("full", layer, to, source)
        kv_pools.until(lambda: both.p._exchange.packer._staged_bytes == 0)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
def test_a_layer_that_is_announced_again_with_other_bytes_fails(cluster: Any, codec: Any) -> None:
    with caches(cluster) as both:
        receive = both.d.prep_recv("r", {"full": [1, 2]}, codec=codec)
        send = both.p.open_send(receive.ticket, {"full": [3, 4]}, codec=codec)
        send.layer_ready("L0")
        receive.wait_layer("L0", WAIT_S)
        send.layer_ready("L0")  # the same bytes
        send.layer_ready("L1")
        receive.wait_layer("L1", WAIT_S)
        kv_pools.slab(both.p_layout, both.p_memory, "full", 0, 4)[:64] ^= 0x55
        send.layer_ready("L0")
        with pytest.raises(kv.TransferFailed) as caught:
            send.wait(WAIT_S)
        assert caught.value.cause == "protocol" and "announced again" in str(caught.value)
        with pytest.raises(kv.TransferFailed):
            receive.wait(WAIT_S)
        both.free()


def test_after_a_cancel_nothing_is_written_and_nothing_is_left(cluster: Any) -> None:
    to, source = blocks(1), blocks(2)
    with caches(cluster) as both:
        for round_number in range(20):
            receive = both.d.prep_recv("r", {"full": to})
            send = both.p.open_send(receive.ticket, {"full": source}, codec="bf16")
            for layer in LAYERS[: 1 + round_number % 3]:
                send.layer_ready(layer)
            if round_number % 2:
                receive.wait_layer("L0", WAIT_S)
            receive.cancel()
            for memory in both.d_memory["full"]:
                memory[:] = 0x5A
            with pytest.raises(kv.EndError):  # aborted, or the ticket was over before it arrived
                send.wait(WAIT_S)
            assert all((memory == 0x5A).all() for memory in both.d_memory["full"])
            both.free()
        kv_pools.until(lambda: both.p._exchange.packer._staged_bytes == 0)
        assert not both.p._exchange.outbound and not both.d._exchange.inbound


def test_a_pool_that_is_closed_amid_parcels_lets_go_of_everything(cluster: Any) -> None:
    with caches(cluster) as both:
        receive = both.d.prep_recv("r", {"full": blocks(1)})
        send = both.p.open_send(receive.ticket, {"full": blocks(2)}, codec="bf16")
        send.layer_ready("L0")
        both.d.close()
        with pytest.raises(kv.TransferFailed):
            receive.wait(WAIT_S)
        for memory in both.d_memory["full"]:
            memory[:] = 0x5A
        with pytest.raises(kv.TransferFailed):
            send.wait(WAIT_S)
        both.free()
        assert all((memory == 0x5A).all() for memory in both.d_memory["full"])


def test_damage_is_fetched_once_more_and_then_fails(cluster: Any) -> None:
    with caches(cluster) as both:
        exchange = both.p._exchange
        offer = exchange.packer._regions.offer_region

        class Damaging:
            def __getattr__(self, name: str) -> Any:
                return getattr(both.p._transfers.offers, name)

            def offer_region(self, key: bytes, generation: int, data: Any, *more: Any, **others: Any) -> Any:
                damaged = data.copy()
                damaged[-1] ^= 1
                return offer(key, generation, damaged, *more, **others)

        exchange.packer._regions = Damaging()
        with pytest.raises(kv.TransferFailed) as caught:
            push(both, [1, 2], [3, 4], sends="bf16")
        assert caught.value.cause in ("checksum", "protocol")
        both.untouched("full", [])
        freed(both)


@pytest.mark.parametrize("codec", ["bf16", "int8"])
@pytest.mark.parametrize("how", ["short", "long", "noise", "zeros"])
def test_a_hostile_parcel_is_a_protocol_error_and_touches_no_block(
    cluster: Any, monkeypatch: Any, how: str, codec: Any
) -> None:
    """Encodings of the wrong length, or of nothing at all."""
    with caches(cluster) as both:
        right = Outbound.encode

        def wrong(*arguments: Any) -> Any:
            data, sums = right(*arguments)
            if how == "short":
                return data[: data.size // 2].copy(), sums
            if how == "long":
                return np.concatenate([data, data[:16]]), sums
            noise = np.frombuffer(secrets.token_bytes(data.size), np.uint8).copy()
            return (noise if how == "noise" else np.zeros_like(data)), sums

        monkeypatch.setattr(Outbound, "encode", wrong)
        with pytest.raises(kv.TransferFailed) as caught:
            push(both, [1, 2], [3, 4], wants=codec, sends=codec)
        expected = ("protocol",) if how in ("short", "long") else ("protocol", "checksum")
        assert caught.value.cause in expected
        both.untouched("full", [])
        freed(both)
        monkeypatch.undo()
        assert push(both, [1, 2], [3, 4], wants=codec, sends=codec)[0].committed  # others are not affected
