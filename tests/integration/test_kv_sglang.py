"""SGLang's disaggregation over pools: D has what P has computed, or both know why not, and nobody holds memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration import kv_pools
from integration.sglang_servers import Servers, backend, servers, settings

DOUBLES = Path(__file__).parent.parent / "doubles"
PEER = Path(__file__).parent / "sglang_peer.py"
PROMPT = [7 * at % 101 for at in range(30)]
KINDS = ((), ("mamba",), ("swa",), ("mamba", "swa"))


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double can be imported, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    monkeypatch.setenv("PCCL_SGLANG", "{}")
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == "sglang" or name == "pccl.kv.adapters.sglang":
            del sys.modules[name]


def causes(server: Any, rid: str) -> list[str]:
    """Why a request has failed, at each worker."""
    return [getattr(error, "cause", type(error).__name__) for error in server.results[rid]]


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(kinds) or "pages")
def test_d_goes_on_where_p_ended(cluster: Any, kinds: tuple[str, ...], page: int) -> None:
    with servers(cluster, kinds, page) as both:
        for number, length in enumerate((30, 29, 32, 8, 3, 1)):
            both.begin(f"r{number}", [number, *PROMPT, *PROMPT][:length])
        names = [f"r{number}" for number in range(6)]
        both.ended(*names)
        assert all(both.p.results[name] == "sent" and isinstance(both.d.results[name], int) for name in names)
        both.free()
        assert len(both.p.metrics) == 6 and all(one.transfer_total_bytes for one in both.p.metrics)
        assert all(one.transfer_latency_s >= 0 for one in both.p.metrics)


def test_what_is_computed_flows_while_the_rest_is_computed(cluster: Any) -> None:
    with servers(cluster) as both:
        p, d = both.begin("r", PROMPT)
        both.until(lambda: p in both.p.running and d in both.d.transferring)
        while p.done < 16:
            both.p.step()
        first, last = d.ends[0]._room._handles[:2], d.ends[0]._room._handles[2:]
        assert len(last) == 2
        kv_pools.until(lambda: all(one.done() for one in first))  # P computes nothing meanwhile
        mine, theirs = both.d.memories[0], both.p.memories[0]
        for a, b in zip(mine.kv, theirs.kv, strict=True):
            assert (a[d.held[0]["pages"][:4]] == b[p.held[0]["pages"][:4]]).all()
        assert not any(one.done() for one in last)
        both.ended("r")
        assert both.p.results["r"] == "sent"
        both.free()


def test_only_what_d_lacks_is_sent(cluster: Any) -> None:
    with servers(cluster, ("mamba",)) as both:
        for rid, length, prefix in (("some", 30, 12), ("all", 28, 28), ("none", 28, 0)):
            both.begin(rid, PROMPT[:length], prefix)
            both.ended(rid)
            assert both.p.results[rid] == "sent" and isinstance(both.d.results[rid], int)
        some, everything, none = (one.transfer_total_bytes for one in both.p.metrics)
        page = 4 * both.p.memories[0].kv[0][0].nbytes
        assert none - everything == 7 * page and some - everything == 5 * page and everything > 0
        both.free()


def test_aborts_reach_the_other_side_at_once_whenever_they_come(cluster: Any) -> None:
    with servers(cluster) as both:
        for who in ("p", "d"):
            p, d = both.begin(f"asked-{who}", PROMPT)  # D has asked, P has not looked
            both.until(lambda d=d: d in both.d.transferring, both.d)
            (p if who == "p" else d).ends[0].abort()
            both.ended(f"asked-{who}")
            p, d = both.begin(f"begun-{who}", PROMPT)
            both.until(lambda p=p: p.done >= 16)
            (p if who == "p" else d).ends[0].abort()
            both.ended(f"begun-{who}")
        p, d = both.begin("early-p", PROMPT)  # before D has asked: it is told when it does
        p.ends[0].abort()
        both.ended("early-p")
        p, d = both.begin("early-d", PROMPT)
        d.ends[0].abort()
        both.until(lambda: "early-d" in both.d.results)
        p.ends[0].abort()  # the router has told P, too: nobody else could
        both.ended("early-d")
        assert causes(both.p, "begun-p") == ["aborted"] and causes(both.d, "begun-d") == ["aborted"]
        assert causes(both.d, "asked-p") == causes(both.d, "early-p") == ["gone"]
        # P may look before it hears of the end
        assert causes(both.p, "asked-d")[0] in ("gone", "ticket", "aborted by the engine")
        assert "aborted by the engine" in str(both.d.results["begun-p"][0])
        both.free()
        both.begin("after", PROMPT)
        both.ended("after")
        assert both.p.results["after"] == "sent"


def test_a_room_that_failed_can_be_tried_again(cluster: Any) -> None:
    with servers(cluster) as both:
        for rid, result in (("first", None), ("again", "sent")):
            d = both.d.add(rid, PROMPT, both.p.address, 7)
            p = both.p.add(rid, PROMPT, 7)
            if result is None:
                p.ends[0].abort()
            both.ended(rid)
            assert d.rid == rid and (result is None or both.p.results[rid] == result)
        both.free()


def test_one_worker_that_fails_ends_all_before_memory_is_given_back(cluster: Any) -> None:
    with servers(cluster, p_args={"tp_size": 2}, d_args={"tp_size": 2}) as both:
        both.begin("good", PROMPT)
        both.ended("good")
        assert isinstance(both.d.results["good"], int)
        for who in ("p", "d"):
            p, d = both.begin(who, PROMPT)
            both.until(lambda p=p: p.done >= 16)
            (p if who == "p" else d).ends[1].abort()
            both.ended(who)
            first, second = causes(both.p if who == "p" else both.d, who)
            assert second == "aborted" and first in ("aborted", "another worker failed")
        both.free()


def test_bytes_that_change_on_their_way_fail_both_sides(cluster: Any) -> None:
    with servers(cluster) as both:
        hasher = both.p.managers[0].pool._exchange._hasher
        original = hasher.put
        hasher.put = lambda job: original(type(job)(job.view, job.offsets, job.nbytes, job.seeds ^ 1, job.done))
        both.begin("r", PROMPT)
        both.ended("r")
        assert causes(both.d, "r") == ["checksum"] and causes(both.p, "r") == ["checksum"]
        hasher.put = original
        both.free()


def test_servers_that_do_not_fit_say_why(cluster: Any) -> None:
    for differs, options in (
        ("page_size", {"d_page": 2}),
        ("tp_size", {"p_args": {"tp_size": 2}}),
        ("kv_cache_dtype", {"d_args": {"kv_cache_dtype": "fp8_e4m3"}}),
        ("pool", {"d": {"pool": "other"}}),
    ):
        with servers(cluster, **options) as both:
            p, _ = both.begin("r", PROMPT)
            both.until(lambda both=both: "r" in both.d.results, both.d)
            assert differs in str(both.d.results["r"][0])
            for end in p.ends:
                end.abort()
            both.ended("r")
    with servers(cluster, p={"model_id": "another"}) as both:
        both.begin("r", PROMPT)
        both.ended("r")
        assert "model_id" in str(both.d.results["r"][0]) and "model_id" in str(both.p.results["r"][0])
        both.free()


def test_counts_that_do_not_fit_fail_and_nothing_raises(cluster: Any) -> None:
    with servers(cluster, ("swa",)) as both:
        room = 5
        both.d.add("r", PROMPT, both.p.address, room)
        both.p.add("r", PROMPT[:20], room)
        both.ended("r")
        assert "5 pages are to be sent, the decoder wants 8" in str(both.p.results["r"][0])
        assert causes(both.d, "r") == ["gone"]
        both.free()


def test_nobody_waits_for_ever(cluster: Any) -> None:
    with servers(cluster, p={"bootstrap_s": 0.3}, d={"deadline_s": 0.5}) as both:
        both.p.add("p", PROMPT, 1)
        both.d.add("d", PROMPT, both.p.address, 2)
        both.until(lambda: "p" in both.p.results and "d" in both.d.results)
        assert causes(both.p, "p") == ["deadline"] and "no decoder" in str(both.p.results["p"][0])
        assert causes(both.d, "d") == ["deadline"]
        request = both.d.add("lost", PROMPT, "127.0.0.1:1", 3)  # nobody is there
        both.d.step()
        assert both.d.poll(request) == 1
        request.ends[0].abort()  # as the scheduler does after some tries
        both.until(lambda: "lost" in both.d.results, both.d)
        both.free()


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_prefill_server_that_is_frozen_or_killed_holds_nothing_at_d(cluster: Any, fault: signal.Signals) -> None:
    chosen = backend()
    from sglang.srt.engine import Decode
    from sglang.srt.server_args import ServerArgs

    coordinator = cluster.coordinator(1, form_peers=1, lease_s=60.0 if fault == signal.SIGSTOP else 1.0)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(DOUBLES), str(PEER.parents[1]), *sys.path]),
        "PCCL_SGLANG": settings(coordinator.address, cluster.secret, 0),
    }
    process = subprocess.Popen(
        [sys.executable, str(PEER)], text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None and process.stdin is not None
        address = process.stdout.readline().strip()
        os.environ["PCCL_SGLANG"] = settings(coordinator.address, cluster.secret, 5, deadline_s=4.0)
        d = Decode(chosen, ServerArgs())
        both = Servers(d, d)
        try:
            for rid, room in (("good", 1), ("lost", 2)):
                request = d.add(rid, PROMPT, address, room)
                both.until(lambda request=request: request in d.transferring, d)
                print(f"{rid} {room}", file=process.stdin, flush=True)
                if rid == "lost":  # a part has come, the next one never will
                    kv_pools.until(lambda request=request: request.ends[0]._room._handles[0].done())
                    process.send_signal(fault)
                both.until(lambda rid=rid: rid in d.results, d)
            assert isinstance(d.results["good"], int)
            assert causes(d, "lost") == (["deadline"] if fault == signal.SIGSTOP else ["lost"])
            d.memories[0].assert_free()
            assert not d.managers[0].pool.busy("kv.0").size
        finally:
            d.close()
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_decode_server_that_is_frozen_or_killed_holds_nothing_at_p(cluster: Any, fault: signal.Signals) -> None:
    chosen = backend()
    from sglang.srt.engine import Prefill
    from sglang.srt.server_args import ServerArgs

    coordinator = cluster.coordinator(1, form_peers=1, lease_s=60.0 if fault == signal.SIGSTOP else 1.0)
    os.environ["PCCL_SGLANG"] = settings(coordinator.address, cluster.secret, 0)
    p = Prefill(chosen, ServerArgs(disaggregation_bootstrap_port=0))
    both = Servers(p, p)
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(DOUBLES), str(PEER.parents[1]), *sys.path]),
        "PCCL_SGLANG": settings(coordinator.address, cluster.secret, 5, deadline_s=4.0),
    }
    process = subprocess.Popen(
        [sys.executable, str(PEER), p.address], text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        request = p.add("r", PROMPT, 9)
        both.until(lambda: request.done >= 16, p)
        process.send_signal(fault)
        both.until(lambda: "r" in p.results, p)
        assert causes(p, "r")[0] in (("deadline", "gone") if fault == signal.SIGSTOP else ("lost", "gone"))
        p.memories[0].assert_free()
        assert not p.managers[0].pool.busy("kv.0").size
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()
        p.close()
