"""The WAN emulator: what it promises of delay, rate, loss, cuts and caps, and that nothing of it is left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("yaml", reason="PyYAML is not installed")
from stress.wan import Emulator, TopologyError, load, namespaces, parse, ready_made, why_not  # noqa: E402
from stress.wan.check import Prober, check_rtts, udp_rate  # noqa: E402

REASON = why_not()
needs_wan = pytest.mark.skipif(REASON is not None, reason=f"no WAN can be emulated here: {REASON}")

TOPOLOGY = {
    "sites": {"a": {}, "b": {}, "c": {}, "hub": {"role": "coordinator"}},
    "defaults": {"rtt_ms": 20, "rate_mbit": 100},
    "links": [{"pair": ["hub", "*"], "rtt_ms": 50}],
}


@pytest.fixture(scope="module")
def wan() -> Iterator[Any]:
    with Emulator(parse(TOPOLOGY)) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def prober(wan: Any) -> Prober:
    return Prober(wan)


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ready_made())
def test_ready_made_topologies_are_valid(name: str) -> None:
    topology = load(name)
    assert topology.name == name
    assert len(topology.links) == len(topology.sites) * (len(topology.sites) - 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sites": {"a": {}}}, "sites: "),
        ({"sites": {"a": {"up": 3}, "b": {}}}, "sites.a.up: unknown"),
        ({"defaults": {"loss": 2}}, "defaults.loss: 2 is outside"),
        ({"defaults": {"rtt_ms": "80"}}, "defaults.rtt_ms: a number"),
        ({"defaults": {"local": 1}}, "defaults.local: true or false"),
        ({"defaults": {"rtt_ms": 8, "delay_ms": 4}}, "defaults: either rtt_ms or delay_ms"),
        ({"links": [{"pair": ["a", "x"]}]}, "links[0].pair: no site or region 'x'"),
        ({"links": [{"from": "a"}]}, "links[0]: pair"),
        ({"defaults": {"loss": "${p}"}}, "defaults.loss: no parameter 'p'"),
        ({"script": [{"pair": ["a", "b"], "cut": True}]}, "script[0].at: missing"),
        ({"script": [{"at": 1, "pair": ["a", "b"]}]}, "script[0]: one of cut"),
        ({"seed": "x"}, "seed: "),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(message)):
        parse({"sites": {"a": {}, "b": {}}} | change)


def test_regions_parameters_and_scripts_are_spelled_out() -> None:
    sites = {"a": {"region": "eu"}, "b": {"region": "eu"}, "c": {}}
    links = [{"pair": ["eu", "c"], "rtt_ms": "${rtt}"}, {"from": "c", "to": "a", "delay_ms": 7}]
    script = [{"at": 2, "site": "c", "cut": True}, {"at": 1, "from": "a", "to": "b", "loss": 0.5}]
    topology = parse({"parameters": {"rtt": 1}, "sites": sites, "links": links, "script": script}, rtt=30)
    delays = {pair: link.delay_ms for pair, link in topology.links.items()}
    assert delays == {("a", "b"): 0, ("b", "a"): 0, ("a", "c"): 15, ("b", "c"): 15, ("c", "b"): 15, ("c", "a"): 7}
    assert [str(action) for action in topology.script] == ["set a -> b loss=0.5", "cut c -> a, c -> b, a -> c, b -> c"]


# -- links -----------------------------------------------------------------------------------------------------------


@needs_wan
@pytest.mark.needs_root
def test_round_trips_are_those_of_the_file(wan: Any, prober: Prober) -> None:
    findings = list(check_rtts(wan, prober, [("a", "b"), ("a", "c"), ("c", "hub")]))
    assert [finding.expected for finding in findings] == ["20.00 ms", "20.00 ms", "50.00 ms"]
    assert all(finding.ok for finding in findings), "\n".join(map(str, findings))


@needs_wan
@pytest.mark.needs_root
def test_ipv6_and_changed_delays(wan: Any, prober: Prober) -> None:
    wan.set_pair("a", "b", both=False, delay_ms=35)
    (finding,) = check_rtts(wan, prober, [("a", "b")], ipv6=True)
    wan.set_pair("a", "b", delay_ms=10)
    assert finding.expected == "45.00 ms" and finding.ok, str(finding)


@needs_wan
@pytest.mark.needs_root
def test_a_flooded_line_carries_its_rate(wan: Any, prober: Prober) -> None:
    finding = udp_rate(wan, prober, "a", "b", 0.8)
    assert finding.ok, str(finding)
    assert wan.stats()["pairs"]["a", "b"]["queue_drops"] > 0


@needs_wan
@pytest.mark.needs_root
def test_all_links_of_a_site_share_its_uplink(wan: Any, prober: Prober) -> None:
    wan.set_site("a", up_mbit=40)
    receivers = [prober.listen(site, "receive-udp", 7001, 500) for site in ("b", "c")]
    senders = [prober.start("a", "send-udp", wan.address(site), 7001, 2000, 1500, 40) for site in ("b", "c")]
    got = [prober.result(receiver) for receiver in receivers]
    assert [prober.result(sender)["sent"] for sender in senders] == [2000, 2000]
    wan.set_site("a", up_mbit=0)
    mbit = sum(result["wire_bytes"] for result in got) * 8e-6 / max(result["seconds"] for result in got)
    assert 36 <= mbit <= 42


@needs_wan
@pytest.mark.needs_root
def test_a_local_pair_uses_no_shared_line(wan: Any, prober: Prober) -> None:
    """Its own rate holds, not the site's: 100 Mbit/s of UDP arrive through a cap of 10."""
    wan.set_site("a", up_mbit=10)
    wan.set_site("b", down_mbit=10)
    wan.set_pair("a", "b", both=False, local=True)
    got = prober.datagrams("a", "b", 6000, 90)
    wan.set_pair("a", "b", both=False, local=False)
    for site in ("a", "b"):
        wan.set_site(site, up_mbit=0, down_mbit=0)
    assert got["packets"] == 6000 and got["wire_bytes"] * 8e-6 / got["seconds"] > 70


@needs_wan
@pytest.mark.needs_root
def test_losses_are_counted_and_spare_the_rest_of_large_packets(wan: Any, prober: Prober) -> None:
    """TCP hands packets of up to 64 KiB down; were one loss to take all of it, nothing would move at this rate."""
    wan.set_pair("a", "b", both=False, rate_mbit=0, loss=0.03)
    before = wan.stats()["pairs"]["a", "b"]
    stream = prober.stream("a", "b", 2, 0.2, 0.8)
    after = wan.stats()["pairs"]["a", "b"]
    wan.set_pair("a", "b", rate_mbit=100, loss=0)
    packets, losses = (after[name] - before[name] for name in ("packets", "losses"))
    assert stream["intact"]
    assert packets > 5000
    assert abs(losses - 0.03 * packets) < 6 * (0.03 * packets) ** 0.5
    assert stream["retransmits"] < 2 * losses + 1000


def lost_of(seed: int) -> int:
    """Of 3,000 datagrams over a line that loses a fifth of them."""
    topology = {"sites": {"a": {}, "b": {}}, "defaults": {"loss": 0.2}, "seed": seed}
    with Emulator(parse(topology)) as wan:
        prober = Prober(wan)
        got = prober.datagrams("a", "b", 3000, 200)
        pair = wan.stats()["pairs"]["a", "b"]
        assert pair["losses"] == got["sent"] - got["packets"] == 3000 - pair["delivered_packets"]
        return int(pair["losses"])


@needs_wan
@pytest.mark.needs_root
def test_the_seed_decides_which_packets_are_lost() -> None:
    first, again, other = lost_of(7), lost_of(7), lost_of(8)
    assert first == again != other
    assert 500 < first < 700


@needs_wan
@pytest.mark.needs_root
def test_a_cut_link_is_silent_until_it_is_healed(wan: Any, prober: Prober) -> None:
    wan.cut("a", "b")
    assert wan.stats()["pairs"]["b", "a"]["cut"]
    got = prober.datagrams("a", "c", 50, 10)
    assert got["packets"] == 50, "other links go on"
    receiver = prober.listen("b", "receive-udp", 7001, 200)
    prober.result(prober.start("a", "send-udp", wan.address("b"), 7001, 50, 1500, 100))
    assert wan.stats()["pairs"]["a", "b"]["cut_drops"] == 50
    wan.heal("a", "b")
    prober.result(prober.start("a", "send-udp", wan.address("b"), 7001, 30, 1500, 100))
    assert prober.result(receiver)["packets"] == 30


# -- nothing is left -------------------------------------------------------------------------------------------------


def is_running(pid: int) -> bool:
    """False also for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@needs_wan
@pytest.mark.needs_root
def test_nothing_is_left_after_the_block() -> None:
    with Emulator(load("two_sites")) as wan:
        process = wan.popen("a", ["sh", "-c", "setsid sleep 60 & echo $!; trap '' TERM; wait"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        router, prefix = wan.router_pid, wan.namespace("a").rsplit("-", 1)[0]
        assert is_running(router)
        assert len(namespaces.existing(prefix)) == 2
    process.stdout.close()
    assert not namespaces.existing(prefix)
    assert not [pid for pid in (process.pid, grandchild, router) if is_running(pid)]
    assert not Path(wan.socket_path).parent.exists()


def start_run() -> tuple[subprocess.Popen[str], int]:
    """A run of the command line, and a process at one of its sites."""
    command = [sys.executable, "-m", "stress.wan", "run", "two_sites", "--", "sh", "-c", "echo pid $$; exec sleep 60"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"pid (\d+)", line):
            return process, int(match[1])
    raise AssertionError("the run printed nothing")


@needs_wan
@pytest.mark.needs_root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals) -> None:
    process, inside = start_run()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert not is_running(inside)
    assert not list(Path(tempfile.gettempdir()).glob(f"{namespaces.PREFIX}-{process.pid}-*"))
    assert not namespaces.existing(f"{namespaces.PREFIX}-{process.pid}")


@needs_wan
@pytest.mark.needs_root
def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    process, inside = start_run()
    left = namespaces.existing(f"{namespaces.PREFIX}-{process.pid}")
    process.kill()
    process.communicate(timeout=20)
    assert len(left) == 2
    assert is_running(inside), "the run was killed, not what it had started"
    assert list(Path(tempfile.gettempdir()).glob(f"{namespaces.PREFIX}-{process.pid}-*"))
    with Emulator(load("two_sites")):
        assert not set(left) & set(namespaces.existing())
    assert not is_running(inside)
    assert not list(Path(tempfile.gettempdir()).glob(f"{namespaces.PREFIX}-{process.pid}-*"))
