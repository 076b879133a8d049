"""vLLM's connector between two engines: D goes on with what P has computed, and in the end nobody holds a block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration import kv_pools
from integration.vllm_caches import BLOCK_TOKENS, Both, both, engine, engine_alone, pools_of, settings

from pccl.kv.receive import AskEnded

DOUBLES = Path(__file__).parent.parent / "doubles"
PEER = Path(__file__).parent / "vllm_peer.py"
PROMPT = [7 * at % 101 for at in range(30)]
CACHES = (("full",), ("mla",), ("full", "swa"), ("full", "state"), ("full", "swa", "state"))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double can be imported, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == "vllm" or name == "pccl.kv.adapters.vllm":
            del sys.modules[name]


@pytest.mark.parametrize("kinds", CACHES, ids="-".join)
def test_d_goes_on_where_p_ended(cluster: Any, kinds: tuple[str, ...]) -> None:
    with both(cluster, *kinds) as engines:
        for number, length in enumerate((30, 29, 32, 3, 1)):
            name, prompt = f"r{number}", [number, *PROMPT, *PROMPT][:length]
            params = engines.prefill(name, prompt)
            before = engines.d.model.computed
            assert engines.decode(name, prompt, params) == engines.expected(prompt)
            assert engines.d.model.computed - before == 4  # the last token of the prompt, and all but one that it made
        engines.free()
        assert pools_of(engines.d)[0].counters.committed == 5


def test_a_window_that_has_moved_on_too_far_is_of_no_use(cluster: Any) -> None:
    with both(cluster, "full", "swa") as engines:
        params = engines.prefill("r", PROMPT)
        for length, computed in ((20, 20), (30, 1)):
            before = engines.d.model.computed
            given = {**params, "transfer_id": "r" if length == 30 else "another"}
            prompt = PROMPT[:length]
            assert engines.decode(f"d{length}", prompt, given) == engines.expected(prompt)
            assert engines.d.model.computed - before == computed + 3
        engines.free()


def test_only_what_d_lacks_is_pulled(cluster: Any) -> None:
    with both(cluster, "full") as engines:
        pool = pools_of(engines.d)[0]
        engines.decode("first", PROMPT, engines.prefill("first", PROMPT))
        whole = pool.counters.received_bytes
        block = whole * BLOCK_TOKENS // 32  # 30 tokens are 8 blocks
        for tail, blocks in (([9] * 9, 3), ([8, 8], 1)):  # of 35 and 28 tokens; 24 are here
            prompt = PROMPT[:26] + tail
            before = pool.counters.received_bytes
            assert engines.decode(f"r{blocks}", prompt, engines.prefill(f"r{blocks}", prompt)) == engines.expected(
                prompt
            )
            engines.free()
            assert pool.counters.received_bytes - before == blocks * block
        params = engines.prefill("short", PROMPT[:24])
        before = pool.counters.received_bytes
        assert engines.decode("short", PROMPT, params) == engines.expected(PROMPT)
        assert pool.counters.received_bytes == before  # all that P has was here: P is free all the same
        engines.free()


def test_who_goes_away_sets_p_free(cluster: Any) -> None:
    with both(cluster, "full", "swa") as engines:
        params = engines.prefill("early", PROMPT)
        engines.d.add("early", PROMPT, 4, params)
        engines.d.abort("early")  # before it had any blocks
        engines.free()
        engines.p.add("late", PROMPT, 1, {"do_remote_decode": True})
        engines.until(lambda: "late" in engines.p.params, engines.p)
        engines.d.add("late", PROMPT, 4, engines.p.params["late"])
        engines.d.step()  # P's worker has not been told: the pull waits for the offer
        assert engines.d.blocks.held()
        engines.d.abort("late")
        assert engines.d.blocks.held() and "late" in engines.d.requests
        engines.until(lambda: not engines.d.requests, engines.d)
        assert pools_of(engines.d)[0].counters.aborted == 1
        engines.free()
        engines.p.add("never", PROMPT, 1, {"do_remote_decode": True})
        engines.p.abort("never")
        assert engines.p.params["never"] is None
        engines.free()


@pytest.mark.parametrize("kinds", [("full",), ("full", "swa", "state")], ids="-".join)
def test_what_does_not_come_is_computed(cluster: Any, kinds: tuple[str, ...]) -> None:
    with both(cluster, *kinds, p={"lease_s": 0.2}) as engines:
        params = engines.prefill("expired", PROMPT)
        engines.until(lambda: not engines.p.requests, engines.p)
        before = engines.d.model.computed
        assert engines.decode("expired", PROMPT, params) == engines.expected(PROMPT)
        assert engines.d.model.computed - before == len(PROMPT) + 3
        failed = [output for output in engines.d.outputs if output.invalid_block_ids]
        assert [output.finished_recving for output in failed] == [{"expired"}]
        engines.free()
        params = engines.prefill("gone", PROMPT)
        engines.p.workers[0].shutdown()
        assert engines.d.blocks.held() == set()
        prompt = [1, *PROMPT[1:]]
        request = engines.d.add("gone", prompt, 4, params)
        engines.until(lambda: len(request.output) == 4, engines.d)
        assert list(request.output) == engines.expected(prompt)
        engines.free()


def test_what_requests_say_is_never_an_error(cluster: Any) -> None:
    with both(cluster, "full") as engines:
        params = engines.prefill("r", PROMPT, transfer_id="x")
        assert params["transfer_id"] == "x"
        assert engines.prefill("again", PROMPT, transfer_id="x") is None
        assert engines.prefill("long", PROMPT, transfer_id="x" * 256) is None
        assert engines.prefill("none", PROMPT, transfer_id=["x"]) is None
        for number, change in enumerate(
            (
                {"peers": ["nobody"]},
                {"peers": params["peers"] * 2},
                {"peers": [pools_of(engines.d)[0]._transfers.peer_id.hex()]},
                {"pool": "other"},
                {"tokens": -1},
                {"first": {}},
                {"first": {"model.full.0": 1000}},
                {"transfer_id": ""},
                {"transfer_id": "y"},
            )
        ):
            prompt = [number, *PROMPT]
            given = {**params, **change}
            assert engines.decode(f"d{number}", prompt, given) == engines.expected(prompt), change
        assert engines.decode("d", PROMPT, params) == engines.expected(PROMPT)
        engines.free()


def test_completions_that_are_late_or_come_twice_change_nothing(cluster: Any) -> None:
    from vllm.v1.outputs import KVConnectorOutput

    from pccl.kv.adapters.vllm_orders import Orders

    with both(cluster, "full") as engines:
        engines.decode("r", PROMPT, engines.prefill("r", PROMPT))
        engines.free()
        for engine in (engines.p, engines.d):
            for output in [*engine.outputs, KVConnectorOutput({"?"}, {"?"})]:
                engine.scheduler.update_connector_output(output)
            engine.workers[0]._worker.begin(Orders(aborts=["r", "?"]))
            assert engine.workers[0].get_finished({"r"}) == (set(), set())
            assert engine.workers[0].get_block_ids_with_load_errors() == set()
            engine.workers[0].shutdown()
            engine.workers[0].shutdown()


def test_workers_meet_by_their_ranks(cluster: Any) -> None:
    with both(cluster, "full", sizes=(2, 2)) as engines:
        for name, prompt in (("first", PROMPT), ("second", [*PROMPT[:26], 9, 9])):
            assert engines.decode(name, prompt, engines.prefill(name, prompt)) == engines.expected(prompt)
            engines.free()
        assert engines.d.model.computed == 2 * 4
        params = engines.prefill("early", PROMPT)
        engines.d.add("early", PROMPT, 4, params)
        engines.d.abort("early")
        engines.free()
    with both(cluster, "full", sizes=(2, 1)) as engines:
        assert engines.decode("r", PROMPT, engines.prefill("r", PROMPT)) == engines.expected(PROMPT)
        assert engines.d.model.computed == len(PROMPT) + 3  # other shards of heads: they are of no use here
        engines.free()


LAYERS = {"load": "layers"}


@pytest.mark.parametrize("kind", ["full", "mla"])
def test_layers_are_waited_for_one_by_one(cluster: Any, kind: str) -> None:
    """While the last layer is held back a step that loads has done the first, and is not over."""
    with both(cluster, kind, d=LAYERS) as engines:
        for length in (30, 29, 32, 3):
            prompt = [length, *PROMPT, *PROMPT][:length]
            params = engines.prefill(f"r{length}", prompt)
            engines.p.step()  # its worker offers
            before = engines.d.model.computed
            worker = engines.d.workers[0]
            seen: list[tuple[str, bool]] = []
            held: list[Any] = []
            exchange, wait = worker._worker.pool._exchange, worker.wait_for_layer_load
            deliver, last = exchange.event, len(worker._worker.pool._memory.views) - 1

            def hold(one: Any, event: Any, deliver: Any = deliver, held: Any = held, last: Any = last) -> None:
                if isinstance(event, AskEnded) and event.ask.unit.here == last:
                    held.append((one, event))
                else:
                    deliver(one, event)

            def release(deliver: Any = deliver, held: Any = held) -> None:
                for one, event in held:
                    deliver(one, event)

            def note(
                layer: str, wait: Any = wait, seen: Any = seen, held: Any = held, tell: Any = exchange._tell
            ) -> None:
                if layer == f"model.{kind}.1":
                    kv_pools.until(lambda: bool(held))
                    tell(release)
                wait(layer)
                seen.append((layer, bool(held)))

            exchange.event, worker.wait_for_layer_load = hold, note
            request = engines.d.add(f"r{length}", prompt, 1, params)
            engines.d.step()
            exchange.event, worker.wait_for_layer_load = deliver, wait
            assert [layer for layer, _ in seen] == [f"model.{kind}.0", f"model.{kind}.1"] and len(held) == 1
            assert list(request.output) == engines.expected(prompt, 1)
            assert engines.d.model.computed - before == 1
            engines.free()
        assert not any(output.finished_recving for output in engines.d.outputs)


def test_layers_that_do_not_come_are_computed(cluster: Any) -> None:
    with both(cluster, "full", p={"lease_s": 0.2}, d=LAYERS) as engines:
        params = engines.prefill("expired", PROMPT)
        engines.until(lambda: not engines.p.requests, engines.p)
        before = engines.d.model.computed
        assert engines.decode("expired", PROMPT, params) == engines.expected(PROMPT)
        assert engines.d.model.computed - before == 1 + len(PROMPT) + 3  # one in vain
        assert [bool(output.invalid_block_ids) for output in engines.d.outputs].count(True) == 1
        engines.free()
        wrong = {**params, "peers": [pools_of(engines.d)[0]._transfers.peer_id.hex()]}
        assert engines.decode("wrong", [1, *PROMPT], wrong) == engines.expected([1, *PROMPT])
        engines.free()


def test_layers_of_a_part_of_a_prompt_and_of_several_requests_in_one_step(cluster: Any) -> None:
    with both(cluster, "full", d=LAYERS) as engines:
        prompts = {f"r{number}": [number, *PROMPT[1:]] for number in range(3)}
        params = {name: engines.prefill(name, prompt[:22]) for name, prompt in prompts.items()}
        engines.p.step()
        before = engines.d.model.computed
        requests = {name: engines.d.add(name, prompt, 1, params[name]) for name, prompt in prompts.items()}
        engines.d.step()
        for name, prompt in prompts.items():  # whole blocks of what P has, so that nothing is written over
            assert list(requests[name].output) == engines.expected(prompt, 1)
        assert engines.d.model.computed - before == 3 * 10
        engines.free()


def test_models_with_several_groups_load_as_a_whole(cluster: Any) -> None:
    with both(cluster, "full", "swa", d=LAYERS) as engines:
        params = engines.prefill("r", PROMPT)
        assert engines.decode("r", PROMPT, params) == engines.expected(PROMPT)
        assert any(output.finished_recving == {"r"} for output in engines.d.outputs)
        engines.free()


def test_a_killed_p_holds_nothing_at_d(cluster: Any) -> None:
    coordinator = cluster.coordinator(1, form_peers=1, lease_s=1.0)
    argv = [sys.executable, str(PEER), coordinator.address, cluster.secret]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(DOUBLES), str(PEER.parents[1]), *sys.path])}
    process = subprocess.Popen(argv, text=True, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        good, lost = json.loads(process.stdout.readline())
        extra = {**settings(coordinator.address, cluster.secret, 5), "deadline_s": 10.0}
        d = engine(extra, 1, "full")
        alone = engine_alone("full")
        try:
            engines = Both(alone, d, alone)
            assert engines.decode("good", PROMPT, good) == engines.expected(PROMPT)
            before = d.model.computed
            assert before == 4
            process.kill()
            process.wait()
            prompt = [1, *PROMPT[1:]]
            assert engines.decode("lost", prompt, lost) == engines.expected(prompt)
            assert d.model.computed - before == len(prompt) + 3
            assert not d.blocks.held() and not d.requests and not pools_of(d)[0].busy("model.full.0").size
        finally:
            d.workers[0].shutdown()
    finally:
        process.kill()
        process.communicate()
