"""The simulator: small cases by hand, what is conserved, that a seed is a result, and how policies compare."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pccl.cli import main
from pccl.errors import ArgumentError
from pccl.kv.model.case_study import DECODE_PER_S, H20, H200
from pccl.kv.model.decide import Paths
from pccl.kv.model.lengths import Lengths
from pccl.kv.model.throughput import ThroughputModel
from pccl.kv.simulator.cluster import Link, Pool, PrefixCache, Topology
from pccl.kv.simulator.generate import generated
from pccl.kv.simulator.policies import policy_of
from pccl.kv.simulator.report import COLUMNS, draw, summary_of, write_csv
from pccl.kv.simulator.run import Outcome, simulate
from pccl.kv.simulator.trace import Request, Trace

GBIT = 125e6
CASE = Topology(Paths(H200, H20), 4, 3, 5, DECODE_PER_S, 10 * GBIT)
QUIET = replace(CASE, jitter=0.0)
HALF = 6000  # requests of the conversation


def played(trace: Trace, policy: str, topology: Topology = CASE, seed: int = 0) -> Outcome:
    return simulate(trace, topology, policy_of(policy, topology), seed)


@cache
def conversation(requests: int) -> Trace:
    return generated("conversation", requests=requests)


@cache
def times(policy: str, gbit: float, requests: int = 3000) -> tuple[float, float]:
    """P90 and P99 of the conversation."""
    found = played(conversation(requests), policy, replace(CASE, bandwidth_bytes_per_s=gbit * GBIT))
    p90, p99 = np.percentile(found.ttft_s, (90, 99))
    return float(p90), float(p99)


# -- parts -----------------------------------------------------------------------------------------------------------


def test_a_pool_serves_in_order_with_all_its_instances() -> None:
    pool = Pool(2)
    assert [pool.take(0.0, 3.0), pool.take(0.0, 1.0), pool.take(0.5, 1.0)] == [(0.0, 3.0), (0.0, 1.0), (1.0, 2.0)]
    assert (pool.wait_s(1.5), pool.wait_s(2.5), len(pool)) == (0.5, 0.0, 2)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5), st.floats(0, 1000)), min_size=1, max_size=20))
def test_a_link_sends_what_it_was_given_and_never_faster(jobs: list[tuple[float, float, float]]) -> None:
    link, now_s, given_bytes = Link(100.0), 0.0, 0.0
    for after_s, ahead_s, size in jobs:
        now_s += after_s
        link.advance(now_s)
        end_s = link.carry(now_s + ahead_s, size)
        given_bytes += size
        assert end_s >= now_s + ahead_s + size / 100.0 - 1e-6
        assert link.sent_bytes + link.queued_bytes == pytest.approx(given_bytes, abs=1e-6)
        assert link.sent_bytes <= 100.0 * now_s + 1e-6
        assert 0.0 <= link.utilisation <= 1.0
    link.advance(end_s + 1.0)
    assert link.sent_bytes == pytest.approx(given_bytes, abs=1e-6)
    assert link.busy_s == pytest.approx(given_bytes / 100.0, abs=1e-6)


def test_a_prefix_cache_knows_blocks_when_they_are_made_and_forgets_the_oldest() -> None:
    cache_of_three = PrefixCache(3)
    cache_of_three.add(5.0, (1, 2, 3))
    assert [cache_of_three.hit_blocks(at, (1, 2, 9)) for at in (4.9, 5.0)] == [0, 2]
    cache_of_three.add(6.0, (1, 7))
    assert cache_of_three.hit_blocks(6.0, (1, 2, 3)) == 2, "3 was the deepest of the oldest"
    assert cache_of_three.hit_blocks(6.0, (1, 7)) == 2
    everything = PrefixCache()
    everything.add(0.0, range(10_000))
    assert everything.hit_blocks(0.0, range(10_000)) == 10_000


# -- one simulation --------------------------------------------------------------------------------------------------


def test_two_requests_by_hand() -> None:
    """The second has the first one's prefix, which is cached when that ends."""
    trace = Trace.of("hand", [Request(0.0, 1024, 1, (1, 2)), Request(10.0, 2048, 1, (1, 2, 3, 4))])
    here = played(trace, "local", QUIET)
    assert here.ttft_s.tolist() == pytest.approx([H20.prefill_s.at(1024), H20.prefill_s.at(1024)])
    away = played(trace, "remote", QUIET)
    sizes = [H200.kv_bytes.at(1024)] * 2
    ttft = 0.03 + H200.prefill_s.at(1024) + sizes[0] / (10 * GBIT) / 32
    assert away.ttft_s.tolist() == pytest.approx([ttft, ttft])
    assert away.predicted_s.tolist() == pytest.approx([ttft, ttft])
    assert away.sent_bytes.tolist() == pytest.approx(sizes)
    assert away.saved_bytes.tolist() == pytest.approx([0.0, H200.kv_bytes.at(2048) - sizes[0]])
    mixed = played(trace, "threshold:1024", QUIET)
    assert not mixed.remote.any(), "1024 are not more than 1024"


@settings(max_examples=8)
@given(st.integers(0, 50), st.sampled_from(["remote", "threshold:5000", "model", "greedy"]))
def test_a_seed_is_a_result(seed: int, policy: str) -> None:
    trace = generated("conversation", seed, 300)
    one, same = played(trace, policy, seed=seed), played(trace, policy, seed=seed)
    for name, value in vars(one).items():
        if isinstance(value, np.ndarray):
            assert (value == getattr(same, name)).all()
    assert one.reasons == same.reasons
    assert (played(trace, policy, seed=seed + 1).ttft_s != one.ttft_s).any()


@pytest.mark.parametrize("policy", ["local", "remote", "threshold:8000", "model", "greedy"])
def test_what_is_conserved(policy: str) -> None:
    trace = generated("conversation", requests=1500)
    found = played(trace, policy)
    sizes = H200.kv_bytes.many(trace.input_tokens.astype(float))
    assert found.sent_bytes + found.saved_bytes == pytest.approx(np.where(found.remote, sizes, 0.0))
    assert (found.uncached_tokens >= 1).all()
    assert (found.uncached_tokens <= trace.input_tokens).all()
    assert (found.ttft_s > 0.3).all()
    assert found.sent_bytes.sum() <= CASE.bandwidth_bytes_per_s * found.end_s
    row = summary_of(found)
    assert row.offloaded == found.remote.mean()
    assert row.ttft_p50_s <= row.ttft_p90_s <= row.ttft_p99_s
    assert (row.within_slo, row.requests) == ((found.ttft_s <= 5.0).mean(), 1500)


def test_predictions_are_right_but_for_the_noise() -> None:
    trace = generated("conversation", requests=1500)
    assert summary_of(played(trace, "greedy", QUIET)).error_p90 < 0.01
    assert summary_of(played(trace, "greedy")).error_p90 < 0.15


def test_a_bounded_cache_hits_less() -> None:
    trace = generated("synthetic", requests=1500)
    sizes = [
        played(trace, "local", replace(CASE, cache_blocks=blocks)).uncached_tokens.sum() for blocks in (0, 2000, None)
    ]
    assert sizes[0] == trace.input_tokens.sum() > sizes[1] > sizes[2]


# -- policies compared -----------------------------------------------------------------------------------------------


def test_fixed_thresholds_make_a_u() -> None:
    p90 = [times(f"threshold:{t}", 5)[0] for t in (2000, 10_000, 32_000)]
    assert p90[0] > 2 * p90[1] < p90[2] / 2


def test_the_best_fixed_threshold_rises_as_bandwidth_falls() -> None:
    candidates = (2000, 4000, 6000, 8000, 12_000, 16_000)
    best = [min(candidates, key=lambda t: times(f"threshold:{t}", gbit)[0]) for gbit in (3, 5, 10)]
    assert best == sorted(best, reverse=True)
    assert best[0] > best[-1]


def test_the_papers_threshold_is_wrong_for_this_trace() -> None:
    assert times("threshold:19400", 10)[0] > 5 * times("greedy", 10)[0]


@pytest.mark.parametrize(
    ("gbit", "thresholds"),
    [(5, (4000, 8000, 11_000, 12_000, 16_000)), (10, (2000, 4000, 5500, 6500, 19_400)), (25, (2000, 3500, 5000, 9000))],
)
def test_greedy_beats_fixed_thresholds(gbit: float, thresholds: tuple[int, ...]) -> None:
    """Those around the best of them, over half of the trace. All, over all of it: python -m stress.kv.deciding."""
    p90, p99 = times("greedy", gbit, HALF)
    for threshold in thresholds:
        fixed = times(f"threshold:{threshold}", gbit, HALF)
        assert p90 < fixed[0], threshold
        assert p99 < fixed[1], threshold


@pytest.mark.parametrize(("name", "decode_per_s"), [("azure-code", 20.0), ("azure-conv", 3.8)])
def test_short_prompts_are_never_offloaded(name: str, decode_per_s: float) -> None:
    """In a cluster of 8 that is divided as is best for these prompts, where it does without the remote one."""
    trace = generated(name)
    model = ThroughputModel(H200, H20, 4, 8, decode_per_s, 25 * GBIT, Lengths.of(trace.input_tokens.astype(float)))
    alone = model.homogeneous()
    assert alone.lambda_max_per_s > len(trace) / trace.duration_s
    topology = Topology(Paths(H200, H20), 4, alone.n_p, alone.n_d, decode_per_s, 25 * GBIT)
    assert not played(trace, "greedy", topology).remote.any()


# -- reports and the command line ------------------------------------------------------------------------------------


def test_the_csv_has_a_line_for_each_request(tmp_path: Path) -> None:
    found = played(generated("synthetic", requests=50), "threshold:4000")
    write_csv(found, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [float(row["ttft_s"]) for row in rows] == found.ttft_s.tolist()
    assert [row["where"] == "remote" for row in rows] == found.remote.tolist()
    with pytest.raises(ArgumentError, match="No such file"):
        write_csv(found, tmp_path / "nowhere" / "out.csv")


def test_the_same_outcomes_make_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    trace = generated("synthetic", requests=50)
    for name in ("a.svg", "b.svg"):
        draw([played(trace, "local"), played(trace, "greedy")], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(ArgumentError, match=r"c\.nothing"):
        draw([played(trace, "local")], tmp_path / "c.nothing")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["kv", "simulate", *arguments])


def test_the_command_compares_policies() -> None:
    result = run("conversation", "--requests", "200", "--policy", "local", "--policy", "threshold:4000", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.output.splitlines()]
    assert [row["policy"] for row in rows] == ["local", "threshold:4000"]
    trace = generated("conversation", requests=200)
    assert {key: rows[1][key] for key in rows[1] if key not in ("trace", "skipped")} == asdict(
        summary_of(played(trace, "threshold:4000"))
    )
    table = run("azure-code", "--requests", "50").output
    assert all(word in table for word in ("greedy", "remote", "P99 s", "50 requests"))


def test_it_reads_files_and_profiles(tmp_path: Path) -> None:
    line = {"timestamp": 0, "input_length": 1000, "output_length": 1, "hash_ids": [1, 2]}
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\nnothing\n")
    curve = {"prefill_s": [[0, 1.0], [1000, 2.0]], "kv_bytes": [[0, 0], [1000, 1000]]}
    (tmp_path / "p.json").write_text(json.dumps({"remote": curve, "local": curve}))
    refused = run(str(tmp_path / "t.jsonl"))
    assert refused.exit_code == 1
    assert "t.jsonl:2: Expecting value" in refused.output
    files = ("--profiles", str(tmp_path / "p.json"), "--csv", str(tmp_path / "out.csv"))
    result = run(str(tmp_path / "t.jsonl"), "--lax", "--policy", "local", "--json", "--jitter", "0", *files)
    found = json.loads(result.output)
    assert (found["skipped"], found["requests"], found["ttft_p50_s"]) == (1, 1, 2.0)
    assert (tmp_path / "out.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("toolagent",), "toolagent: a trace is"),
        (("synthetic", "--policy", "best"), "policy must be one of"),
        (("synthetic", "--policy", "threshold:-1"), "threshold must be"),
        (("synthetic", "--policy", "threshold:x"), "write threshold:8000"),
        (("synthetic", "--gbit", "nan"), "bandwidth_bytes_per_s"),
        (("synthetic", "--remote", "0"), "n_remote"),
        (("synthetic", "--rtt", "-1"), "rtt_s"),
        (("synthetic", "--slo", "0"), "slo_s"),
        (("synthetic", "--jitter", "-1"), "jitter"),
        (("synthetic", "--decode-rate", "0"), "decode_per_s"),
        (("synthetic", "--cache-blocks", "-1"), "cache_blocks"),
        (("synthetic", "--profiles", "/nonexistent"), "/nonexistent"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments, "--requests", "20")
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_topology_names_what_is_wrong() -> None:
    for field, value in (("bandwidth_bytes_per_s", math.nan), ("n_p", 0), ("n_d", -1), ("jitter", math.nan)):
        with pytest.raises(ArgumentError, match=field):
            replace(CASE, **{field: value})
