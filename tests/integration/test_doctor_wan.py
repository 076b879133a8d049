"""`pccl doctor` between two sites of the WAN emulator, whose round trip, rates and losses are known."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: pccl itself is the installed one

pytest.importorskip("yaml", reason="PyYAML is not installed")
from stress.wan import Emulator, parse, why_not  # noqa: E402

REASON = why_not()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(REASON is not None, reason=f"no WAN can be emulated here: {REASON}"),
]

PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 120
RTT_MS, UP_MBIT, DOWN_MBIT = 40.0, 60.0, 100.0
PAYLOAD = 1448 / 1500  # of a wire packet
LONG_S = "2.5"  # of which 1.8 s count
LONE = 0.2  # so much less a lone stream may carry: little more is on its way than the path holds
TOPOLOGY = {
    "sites": {"a": {}, "b": {}},
    "defaults": {"rtt_ms": RTT_MS},
    "links": [{"from": "a", "to": "b", "rate_mbit": UP_MBIT}, {"from": "b", "to": "a", "rate_mbit": DOWN_MBIT}],
}
CLIENT, LISTENER = f"{socket.gethostname()} (client)", f"{socket.gethostname()} (listener)"
UP, DOWN = f"{CLIENT} -> {LISTENER}", f"{LISTENER} -> {CLIENT}"

Found = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def wan() -> Iterator[Any]:
    with Emulator(parse(TOPOLOGY)) as emulator:
        yield emulator


class Examination:
    """The listener at b, the client at a. `sysctls`: of the client's namespace, as sysctl takes them."""

    def __init__(self, wan: Any, *options: str, seconds: str = "1.5", sysctls: tuple[str, ...] = ()) -> None:
        self.listener = self.start(wan, "b", "--listen", "0", "--json")
        assert self.listener.stderr is not None
        found = re.search(r"listening at \S+:(\d+);", self.listener.stderr.readline())
        assert found
        self.address = f"{wan.address('b')}:{found[1]}"
        client = self.start(wan, "a", self.address, "--json", "--seconds", seconds, *options, sysctls=sysctls)
        self.out, self.notes = client.communicate(timeout=PATIENCE_S)
        theirs, _ = self.listener.communicate(timeout=PATIENCE_S)
        self.codes = client.returncode, self.listener.returncode
        assert self.out == theirs
        rows = [json.loads(line) for line in self.out.splitlines()]
        self.found: Found = {(row["check"], row["where"]): row for row in rows}

    @staticmethod
    def start(wan: Any, site: str, *options: str, sysctls: tuple[str, ...] = ()) -> Any:
        command = [*PCCL, "doctor", *options]
        for setting in sysctls:
            name, value = setting.split("=", 1)
            path = "/proc/sys/" + name.replace(".", "/")
            command = ["sh", "-c", 'echo "$1" > "$2" && shift 2 && exec "$@"', "sh", value.strip('"'), path, *command]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return wan.popen(site, command, env=environment(), cwd="/", **pipes)

    def levels(self) -> dict[str, set[str]]:
        """level -> "check where" of all that are not ok."""
        levels: dict[str, set[str]] = {"advice": set(), "problem": set()}
        for (check, where), row in self.found.items():
            if row["level"] != "ok":
                levels[row["level"]].add(f"{check} {where}")
        return levels


def environment() -> dict[str, str]:
    return {"PCCL_SECRET": "a secret", "PYTHONUNBUFFERED": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def near(value: float, expected: float, share: float = 0.08) -> bool:
    return abs(value - expected) <= share * expected


def is_of_one_stream(value: float, line: float) -> bool:
    """No more than the line carries; less where the machine held its ends up."""
    return (1 - LONE) * line <= value and (value <= line or near(value, line))


def test_a_path_is_found_as_it_is_and_the_advice_helps(wan: Any) -> None:
    """The client's send buffer holds a third of the path. Its owner does what the doctor says, and asks again."""
    small = 'net.ipv4.tcp_wmem="4096 16384 131072"'
    before = Examination(wan, seconds=LONG_S, sysctls=(small,))
    assert before.codes == (0, 0)
    rtt = before.found["round trip", f"{CLIENT} <-> {LISTENER}"]
    assert RTT_MS <= rtt["min_ms"] < RTT_MS + 5  # the median is that of a busy machine
    assert rtt["min_ms"] <= rtt["median_ms"]
    up, down = before.found["bandwidth", UP], before.found["bandwidth", DOWN]
    assert near(up["all_streams_mbit_per_s"], UP_MBIT * PAYLOAD)
    assert near(down["all_streams_mbit_per_s"], DOWN_MBIT * PAYLOAD)
    assert is_of_one_stream(down["one_stream_mbit_per_s"], DOWN_MBIT * PAYLOAD)
    buffers = before.found["buffers", UP]
    assert near(up["one_stream_mbit_per_s"], buffers["one_stream_limit_mbit_per_s"], LONE), "the kernel keeps the limit"
    assert buffers["held_by_send_buffer_percent"] > 20
    assert before.found["path MTU", UP]["mtu_bytes"] == before.found["path MTU", DOWN]["mtu_bytes"] == 1500
    clocks = before.found["clocks", f"{CLIENT} <-> {LISTENER}"]
    assert abs(clocks["offset_ms"]) <= clocks["bound_ms"] < RTT_MS
    levels = before.levels()
    assert levels["advice"] - {f"bandwidth {DOWN}"} == {f"bandwidth {UP}", f"buffers {UP}"}
    assert levels["problem"] == set()

    told = re.search(r'sysctl -w (net\.ipv4\.tcp_wmem="[\d ]+")', buffers["change"])
    assert told
    after = Examination(wan, seconds=LONG_S, sysctls=(told[1],))
    helped = after.found["bandwidth", UP]["one_stream_mbit_per_s"]
    assert is_of_one_stream(helped, UP_MBIT * PAYLOAD) and helped > 1.5 * up["one_stream_mbit_per_s"]
    levels = after.levels()
    assert levels["advice"] <= {f"bandwidth {UP}", f"bandwidth {DOWN}"} and levels["problem"] == set()


def test_losses_are_found_and_blamed_on_the_path(wan: Any) -> None:
    """One packet in a hundred is lost upwards, and the sender takes each for a full queue."""
    wan.set_pair("a", "b", rtt_ms=10)
    wan.set_pair("a", "b", both=False, loss=0.01)
    done = Examination(wan, seconds="3", sysctls=("net.ipv4.tcp_congestion_control=reno",))
    wan.set_pair("a", "b", rtt_ms=RTT_MS, loss=0)
    loss = done.found["loss", UP]
    assert 0.5 <= loss["resent_percent"] <= 2
    assert "the path loses packets" in loss["text"]
    assert done.found["congestion control", CLIENT]["in_force"] == "reno"
    assert "bbr" in done.found["congestion control", CLIENT]["change"]
    rates = done.found["bandwidth", UP]
    assert rates["one_stream_mbit_per_s"] < 0.5 * rates["all_streams_mbit_per_s"]
    levels = done.levels()
    expected = {f"loss {UP}", f"congestion control {CLIENT}", f"bandwidth {UP}"}
    # A busy machine may hold back the lone stream of the other direction too; for losses it must not be blamed.
    assert levels["advice"] - {f"bandwidth {DOWN}"} == expected
    assert levels["problem"] == set()
    assert done.codes == (0, 0)


def test_a_client_that_only_calls_out(wan: Any) -> None:
    """Nothing from outside reaches it: it listens at loopback; and where it says it is, nobody answers."""
    done = Examination(wan, "--call-back", "127.0.0.1:0", "--advertise", "10.250.0.1:29500", "--streams", "2")
    one = done.found["reachability", DOWN]
    assert sorted(one["failed"].values()) == ["refused", "timeout"]
    assert one["failed"]["10.250.0.1:29500"] == "timeout"
    assert "not at 127.0.0.1 only" in one["change"]
    assert done.found["reachability", UP]["reached"] == [done.address]
    assert f"reachability {DOWN}" in done.levels()["advice"] and done.levels()["problem"] == set()
    assert done.codes == (0, 0)


def test_a_path_that_is_cut_is_an_error_with_a_name(wan: Any) -> None:
    wan.cut("a", "b")
    client = Examination.start(wan, "a", f"{wan.address('b')}:29500")
    _, notes = client.communicate(timeout=PATIENCE_S)
    wan.heal("a", "b")
    assert client.returncode == 1
    assert f"Error: no answer from {wan.address('b')}:29500 within 5 s" in notes
