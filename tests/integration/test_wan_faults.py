"""Links of real processes fail on an emulated WAN: streams die, links are bad, silent, dead, and come back.

In all of it no peer is evicted, and every element of every result is checked by the peers themselves.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("yaml", reason="PyYAML is not installed")
from integration.wan_crew import PATIENCE_S, Crew, crew  # noqa: E402

from stress.wan import Emulator, load, parse, why_not  # noqa: E402

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"no WAN can be emulated here: {REASON}"),
    pytest.mark.needs_root,
]

MIB = 1 << 20
STREAMS = 8
#: Decisions that a link fault alone may not lead to.
EVICTIONS = {"lost", "lease", "leave", "gone"}
EVERY_KIND = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "barrier")


def sites(count: int, **defaults: float) -> Any:
    """So many equal sites, and one for the coordinator, which is close to all."""
    names = [chr(ord("a") + k) for k in range(count)]
    links = [{"pair": ["hub", "*"], "rtt_ms": 10, "rate_mbit": 1000}]
    return parse({"sites": {name: {} for name in [*names, "hub"]}, "defaults": defaults, "links": links})


@pytest.fixture(scope="module")
def eight() -> Iterator[Crew]:
    """Three peers, eight streams on each link, 100 Mbit/s: 8 MiB reduced take about half a second."""
    with Emulator(sites(3, rtt_ms=20, rate_mbit=100)) as wan, crew(wan, streams=STREAMS) as made:
        made.all(do="op", kind="all_reduce", nbytes=MIB)
        yield made


def unharmed(crew: Crew, before: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    """Nothing was lost, nothing was started again, nothing was decided. A better plan may wait for a boundary."""
    expected = [(0, 3, facts["epoch"]) for facts in before]
    assert [(answer["retries"], answer["world"], answer["epoch"]) for answer in answers] == expected
    decided = set(crew.log())
    assert not decided & (EVICTIONS | {"freeze", "dead link"}), decided


def test_one_of_eight_streams_is_killed(eight: Crew) -> None:
    before = eight.all(do="facts")
    assert [answer["streams"]["1"] for answer in before[::2]] == [STREAMS] * 2
    eight.tell(do="op", kind="all_reduce", nbytes=16 * MIB)
    eight.wait_for_bytes("a", "b", 2 * MIB)
    eight.kill_stream("a", "b")
    answers = eight.answers()
    unharmed(eight, before, answers)
    resent = [answer["frames_resent"] - old["frames_resent"] for answer, old in zip(answers, before, strict=True)]
    assert sum(resent[:2]) > 0, "it was killed when there was nothing on it"
    assert not resent[2]
    eight.until("facts", lambda now: [now[0]["streams"]["1"], now[1]["streams"]["0"]] == [STREAMS] * 2)


@pytest.mark.parametrize("killed", [False, True], ids=["silent", "killed"])
def test_all_streams_of_a_link_are_away_for_two_seconds(eight: Crew, killed: bool) -> None:
    """Cut off, and in the second case also aborted at one end, whose resets do not get through."""
    before = eight.all(do="facts")
    eight.tell(do="op", kind="all_reduce", nbytes=16 * MIB)
    eight.wait_for_bytes("a", "b", 2 * MIB)
    eight.wan.cut("a", "b")
    if killed:
        eight.kill_streams("a", "b")
    assert eight.is_busy_for(2.0), "the op ended without the link"
    eight.wan.heal("a", "b")
    unharmed(eight, before, eight.answers())
    assert not killed or "suspect" in eight.log()


# -- a link that is bad, dead, and back ------------------------------------------------------------------------------


def survived(crew: Crew, peers: int) -> dict[str, Any]:
    """All are members still, and have a plan around the link."""
    status = crew.status()
    assert status["members"] == peers and "around the broken link" in status["plan"], status
    assert not {what for what, _ in status["log"]} & EVICTIONS
    return status


def test_a_bad_link_is_avoided() -> None:
    """Once it is measured, an all-reduce leaves to it less than a third of what another link carries."""
    pairs = (("a", "b"), ("c", "d"))

    def is_avoided(status: dict[str, Any]) -> bool:
        before = [four.wire_bytes(*pair) for pair in pairs]
        four.all(do="op", kind="all_reduce", nbytes=12 * MIB)
        bad, good = (four.wire_bytes(*pair) - old for pair, old in zip(pairs, before, strict=True))
        return "of mesh" in status["plan"] and bad < good / 3

    with Emulator(load("one_bad_link")) as wan, crew(wan, replan_gap_s=2.0) as four:
        for a, b in itertools.combinations(four.sites, 2):
            if (a, b) != ("a", "b"):
                wan.set_pair(a, b, rate_mbit=100)  # so that little data shows what they carry
        log = four.stepping_until(is_avoided)["log"]
        assert not {what for what, _ in log} & (EVICTIONS | {"freeze", "dead link"})


def test_links_that_nobody_uses_are_measured() -> None:
    """Members that call nothing: the coordinator knows what every path carries, and a plan by it waits for them."""
    mbit = {("a", "b"): 100, ("a", "c"): 50, ("b", "c"): 20}
    with Emulator(sites(3, rtt_ms=20, rate_mbit=100)) as wan, crew(wan) as three:
        site = {wan.address(name): name for name in three.sites}
        for (a, b), rate_mbit in mbit.items():
            wan.set_pair(a, b, rate_mbit=rate_mbit)
        deadline = time.monotonic() + PATIENCE_S
        while len(rates := three.status()["rates"]) < 6:
            assert time.monotonic() < deadline, f"only these are known: {rates}"
        for start, end, rate in rates:
            expected = mbit[min(site[start], site[end]), max(site[start], site[end])] * 1e6 / 8
            assert expected / 2 < rate < expected * 2, (site[start], site[end], rate, expected)
        assert [what for what, _ in three.status()["log"]].count("measure") == 1
        assert sum(three.wire_bytes(*pair) for pair in itertools.permutations(three.sites, 2)) < 6 * 64 * MIB


def test_every_op_goes_around_a_dead_link_and_over_it_again_when_it_is_back() -> None:
    """Of three: two links have to do."""
    with Emulator(sites(3, rtt_ms=20, rate_mbit=200)) as wan, crew(wan, link_grace_s=3.0, link_mended_s=1.0) as three:
        three.tell(do="op", kind="all_reduce", nbytes=16 * MIB)
        three.wait_for_bytes("a", "b", 2 * MIB)
        wan.cut("a", "b")
        assert [(answer["retries"], answer["world"]) for answer in three.answers()] == [(1, 3)] * 3
        survived(three, 3)
        [epoch] = set(three.peers_facts("epoch"))
        relayed = three.peers_facts("relayed_bytes")
        for kind in EVERY_KIND:
            for answer in three.all(do="op", kind=kind, nbytes=MIB):
                assert (answer["retries"], answer["world"], answer["epoch"]) == (0, 3, epoch), kind
        for ends in ((0, 1), (1, 0)):
            assert [a.get("retries") for a in three.all(do="op", kind="pair", nbytes=MIB, ends=ends)] == [0, 0, None]
        passed_on = [now - old for now, old in zip(three.peers_facts("relayed_bytes"), relayed, strict=True)]
        assert passed_on[:2] == [0, 0] and passed_on[2] > 7 * MIB, "over c, and no other way"

        wan.heal("a", "b")
        mended = three.stepping_until(
            lambda status: any(what == "epoch" and "can be used again" in reason for what, reason in status["log"])
        )
        three.until("step", lambda now: min(answer["epoch"] for answer in now) >= mended["epoch"] > epoch)
        relayed, before = three.peers_facts("relayed_bytes"), three.wire_bytes("a", "b")
        assert {answer["retries"] for answer in three.all(do="op", kind="all_gather", nbytes=MIB)} == {0}
        assert sum(three.peers_facts("relayed_bytes")) < sum(relayed) + 4096, "nothing but the last of the old detour"
        assert three.wire_bytes("a", "b") > before + 2 * MIB
