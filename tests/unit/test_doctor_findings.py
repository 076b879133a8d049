"""The doctor's advice: tables of what was measured, and what must be said about it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from unit.doctor_facts import CLIENT, LISTENER, NOTHING, flow, good

from pccl.doctor.facts import Call, Clock, Flow, Measurements, Place, Received
from pccl.doctor.finding import Finding, rate_text, worst
from pccl.doctor.findings import findings

UP, DOWN = "alpha -> beta", "beta -> alpha"
BOTH = "alpha <-> beta"


def found(measured: Measurements, check: str, where: str) -> Finding:
    """The one finding of that name and place."""
    matching = [one for one in findings(measured) if (one.check, one.where) == (check, where)]
    assert len(matching) == 1, [(one.check, one.where) for one in findings(measured)]
    return matching[0]


def others_are_fine(measured: Measurements, *checks: str) -> None:
    assert {one.check for one in findings(measured) if one.level != "ok"} == set(checks)


def says(finding: Finding, level: str, text: str, change: str) -> None:
    assert (finding.level, text in finding.text, change in finding.change) == (level, True, True), finding


def client_place(**changes: Any) -> Place:
    return replace(good().client, **changes)


def listener_place(**changes: Any) -> Place:
    return replace(good().listener, **changes)


def on_host(side: str, **changes: Any) -> Measurements:
    """A good path with another host at one end."""
    place = getattr(good(), side)
    return good(**{side: replace(place, host=replace(place.host, **changes))})


def test_a_good_path_needs_no_change() -> None:
    all_of_them = findings(good())
    assert [one for one in all_of_them if one.level != "ok"] == []
    assert worst(all_of_them) == "ok"
    assert [one.check for one in all_of_them if one.where in (UP, DOWN)][::2] == [
        "reachability",
        "bandwidth",
        "loss",
        "path MTU",
        "buffers",
    ]
    assert {one.check for one in all_of_them if one.where == BOTH} == {"round trip", "clocks", "versions"}
    assert {one.check for one in all_of_them if one.where == "beta"} == {"congestion control", "open files"}


def test_two_hosts_of_one_name_are_told_apart() -> None:
    same = good(listener=listener_place(host=good().client.host))
    assert found(same, "bandwidth", "alpha (client) -> alpha (listener)").level == "ok"


def test_the_worst_decides() -> None:
    ok, advice, problem = (Finding("x", "y", level, "") for level in ("ok", "advice", "problem"))
    assert [worst(some) for some in ([], [ok], [ok, advice], [problem, advice, ok])] == [
        "ok",
        "ok",
        "advice",
        "problem",
    ]


def test_as_json_a_finding_is_flat() -> None:
    one = found(good(), "round trip", BOTH)
    values = json.loads(json.dumps(one.as_json()))
    assert values | {"text": "", "where": ""} == {
        "check": "round trip",
        "where": "",
        "level": "ok",
        "text": "",
        "change": "",
        "min_ms": 80.0,
        "median_ms": 80.3,
        "max_ms": 80.9,
        "round_trips": 3,
    }


# -- who reaches whom ------------------------------------------------------------------------------------------------


def calls_to_client(*calls: tuple[str, str]) -> tuple[Call, ...]:
    return (*(Call("listener", address, outcome, "") for address, outcome in calls), good().calls[1])  # type: ignore[arg-type]


NAT_CLIENT = {"own": "10.0.0.5", "seen": "203.0.113.1", "advertised": ("10.0.0.5:29501",)}
PRIVATE, PUBLIC = "10.0.0.5:29501", "203.0.113.1:29501"

UNREACHED: list[tuple[str, dict[str, Any], list[tuple[str, str]], str, str]] = [
    (
        "a firewall that drops",
        {},
        [(CLIENT, "timeout")],
        f"beta cannot dial alpha ({CLIENT}: no answer)",
        "open TCP port 29501 on alpha for calls from beta",
    ),
    (
        "a firewall that refuses",
        {},
        [(CLIENT, "refused")],
        f"({CLIENT}: refused); in a run alpha dials beta",
        "open TCP port 29501 on alpha",
    ),
    (
        "any free port",
        {"listens": "[::]:0"},
        [(CLIENT, "refused")],
        "cannot dial",
        "open TCP port 29500 on alpha for calls from beta "
        "(a fixed port: PCCL_LISTEN=[::]:29500, here --call-back 29500)",
    ),
    (
        "loopback only",
        {"listens": "127.0.0.1:29501"},
        [(CLIENT, "refused")],
        "cannot dial",
        "on alpha listen at all addresses, not at 127.0.0.1 only: PCCL_LISTEN=[::]:29501",
    ),
    (
        "NAT",
        NAT_CLIENT,
        [(PUBLIC, "timeout"), (PRIVATE, "unreachable")],
        f"({PUBLIC}: no answer; {PRIVATE}: no way there); "
        "alpha has the address 10.0.0.5 and is seen as 203.0.113.1: NAT",
        "at the router that has 203.0.113.1 forward TCP port 29501 to 10.0.0.5:29501, "
        "and on alpha set PCCL_LISTEN=[::]:29501 PCCL_ADVERTISE=203.0.113.1:29501",
    ),
    (
        "a private address that means another machine there",
        {"advertised": (PRIVATE,)},
        [(PRIVATE, "stranger")],
        f"({PRIVATE}: something else answers there)",
        "on alpha set PCCL_ADVERTISE to an address that means alpha to beta too",
    ),
    (
        "an advertised address that nobody reaches, beside one that works",
        NAT_CLIENT,
        [(PUBLIC, "ok"), (PRIVATE, "timeout")],
        f"alpha advertises {PRIVATE}, where beta does not reach it, but at {PUBLIC}; alpha has",
        f"on alpha set PCCL_ADVERTISE={PUBLIC} PCCL_LISTEN=[::]:29501",
    ),
]


@pytest.mark.parametrize(
    ("place", "calls", "text", "change"), [row[1:] for row in UNREACHED], ids=[r[0] for r in UNREACHED]
)
def test_a_client_that_cannot_be_dialled(
    place: dict[str, Any], calls: list[tuple[str, str]], text: str, change: str
) -> None:
    measured = good(client=client_place(**place), calls=calls_to_client(*calls))
    says(found(measured, "reachability", DOWN), "advice", text, change)
    assert found(measured, "reachability", UP).level == "ok"
    others_are_fine(measured, "reachability")


def test_without_either_direction_a_third_peer_is_needed() -> None:
    place = listener_place(own="10.9.9.9", advertised=("10.9.9.9:29500",))
    calls = (*calls_to_client((CLIENT, "timeout")), Call("client", "10.9.9.9:29500", "timeout", ""))
    measured = good(listener=place, calls=calls)
    for where in (UP, DOWN):
        one = found(measured, "reachability", where)
        assert one.level == "problem" and one.change
        assert "neither dials the other: a third peer that both can dial must relay" in one.text


def test_forwarded_ports_that_are_advertised_are_fine() -> None:
    place = client_place(own="10.0.0.5", seen="203.0.113.1", advertised=(PUBLIC,))
    one = found(good(client=place, calls=calls_to_client((PUBLIC, "ok"))), "reachability", DOWN)
    says(one, "ok", f"beta can dial alpha at {PUBLIC}; alpha has the address 10.0.0.5 and is seen as 203.0.113.1", "")
    assert one.values["behind_nat"] is True
    assert (one.values["own_address"], one.values["seen_address"]) == ("10.0.0.5", "203.0.113.1")


def test_a_listener_must_advertise_where_it_was_reached() -> None:
    place = listener_place(own="10.9.9.9", advertised=("10.9.9.9:29500",))
    calls = (*good().calls, Call("client", "10.9.9.9:29500", "timeout", ""))
    one = found(good(listener=place, calls=calls), "reachability", UP)
    says(
        one,
        "advice",
        "beta advertises 10.9.9.9:29500",
        f"on beta set PCCL_ADVERTISE={LISTENER} PCCL_LISTEN=[::]:29500",
    )
    assert one.values["failed"] == {"10.9.9.9:29500": "timeout"}
    reached = good(listener=place, calls=(*good().calls, Call("client", "10.9.9.9:29500", "ok", "")))
    assert found(reached, "reachability", UP).level == "ok"


def test_the_scope_of_a_link_local_address_is_no_nat() -> None:
    assert not client_place(own="fe80::1%eth0", seen="fe80::1%wlan0").behind_nat
    assert client_place(own="fe80::1%eth0", seen="fe80::2%eth0").behind_nat


# -- the path --------------------------------------------------------------------------------------------------------


def test_a_queue_that_is_full_before_the_test() -> None:
    busy = found(good(rtts_us=(20_000, 90_000, 100_000)), "round trip", BOTH)
    says(busy, "advice", "90.00 ms (least 20.00, most 100.00)", "what else fills the link")
    assert found(good(rtts_us=(20_000, 21_000, 500_000)), "round trip", BOTH).level == "ok", "one late answer"
    assert found(good(rtts_us=(100, 900, 1000)), "round trip", BOTH).level == "ok", "a LAN"


def test_one_stream_that_does_not_fill_the_path() -> None:
    one = found(good(up=flow(60), up_many=flow(200, 8)), "bandwidth", UP)
    says(one, "advice", "60 Mbit/s over 1 stream, 200 Mbit/s over 8", "use 4 streams: pccl coordinator --streams 4")
    far = found(good(rtts_us=(200_000,), up=flow(60), up_many=flow(500, 8)), "bandwidth", UP)
    assert "use 8 streams: pccl coordinator --streams 8 (its planner would take 6)" in far.change
    filled = found(good(rtts_us=(200_000,), up=flow(150), up_many=flow(500, 8)), "bandwidth", UP)
    assert "use 4 streams or more: pccl's planner takes 6 here by itself" in filled.change
    assert (one.values["one_stream_mbit_per_s"], one.values["all_streams_mbit_per_s"]) == (60.0, 200.0)
    assert found(good(up=flow(60)), "bandwidth", DOWN).level == "ok"
    assert found(good(up=flow(180), up_many=flow(200, 8)), "bandwidth", UP).level == "ok"
    assert found(good(up_many=flow(150, 8)), "bandwidth", UP).level == "ok", "many streams may be slower"


def test_streams_that_break_under_load() -> None:
    one = found(good(down_many=flow(200, 8, streams_lost=3)), "bandwidth", DOWN)
    says(one, "advice", "3 broke under load", "ask who runs the firewalls between beta and alpha")


def test_nothing_but_small_packets_passes() -> None:
    silent, silent_many = flow(0), flow(0, 8)
    assert silent.received == NOTHING
    measured = good(up=silent, up_many=silent_many)
    says(found(measured, "bandwidth", UP), "problem", "nothing arrived", "see path MTU")
    says(found(measured, "path MTU", UP), "problem", "black hole", "on alpha: sysctl -w net.ipv4.tcp_mtu_probing=1")
    assert found(measured, "path MTU", DOWN).level == "ok"
    others_are_fine(measured, "bandwidth", "path MTU")


def test_a_rate_that_was_never_counted_is_no_division_by_zero() -> None:
    trickle = Flow(1, flow(1).sent, Received(100, 0, 0))
    measured = good(up=trickle, up_many=replace(trickle, streams=8))
    assert found(measured, "bandwidth", UP).level == "ok"
    assert found(measured, "buffers", UP).level == "ok"


def test_bytes_that_waited_behind_a_gap_are_not_counted_as_speed() -> None:
    """Of 240 Mbit/s that were read, a part had arrived before. Full segments that arrived may be more than was read."""
    assert flow(240, 8, delivered_bytes=50_000_000).bytes_per_s == 25e6
    assert flow(200, 8, delivered_bytes=60_000_000).bytes_per_s == 25e6
    assert flow(200, 8, delivered_bytes=0).bytes_per_s == 25e6, "an old kernel does not tell"


def lossy(mbit: float, resent: int, congestion: str = "cubic", **changes: Any) -> Flow:
    return flow(mbit, 1, segments=20_000, resent=resent, congestion=congestion, **changes)


def test_a_path_that_loses_packets() -> None:
    measured = good(up=lossy(20, 10), up_many=flow(150, 8))
    says(
        found(measured, "loss", UP),
        "advice",
        "10 of 20000 segments sent again (0.05 %): the path loses",
        "use 8 streams",
    )
    assert found(measured, "loss", UP).values["resent_percent"] == 0.05
    others_are_fine(measured, "loss", "congestion control", "bandwidth")
    assert found(good(up=lossy(200, 10)), "loss", UP).text.endswith("one stream fills the path all the same")
    assert found(good(up=lossy(200, 10)), "loss", UP).level == "ok", "the stream filled the path"
    assert found(good(up=lossy(20, 0)), "loss", UP).level == "ok"


def test_without_selective_acknowledgements() -> None:
    one = found(good(up=lossy(200, 0, selective_acks=False)), "loss", UP)
    says(one, "advice", "no selective acknowledgements", "on alpha and beta: sysctl -w net.ipv4.tcp_sack=1")


def test_a_kernel_that_tells_nothing_of_tcp() -> None:
    mute = flow(200, 1, segments=0, mss_bytes=0, mtu_bytes=0, window_scaling=False, selective_acks=False, busy_us=0)
    measured = good(up=mute, up_many=mute)
    assert [one for one in findings(measured) if one.level != "ok"] == []
    assert found(measured, "loss", UP).text == "the kernel does not tell, or nothing was sent"
    assert found(measured, "path MTU", UP).text == "the kernel does not tell"


def test_a_small_mtu() -> None:
    one = found(good(down=flow(200, 1, mtu_bytes=1000, mss_bytes=948)), "path MTU", DOWN)
    says(one, "advice", "path MTU 1000 bytes, 948 bytes of data per segment: small", "to 1280 or more")
    assert one.values == {"mtu_bytes": 1000, "mss_bytes": 948}


# -- TCP on the hosts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "loaded", "change"),
    [
        (("reno", "cubic", "bbr"), ("reno", "cubic", "bbr"), 'on alpha: pccl.connect(..., congestion="bbr")'),
        (
            ("reno", "cubic"),
            ("reno", "cubic", "bbr"),
            'on alpha: sysctl -w net.ipv4.tcp_allowed_congestion_control="reno cubic bbr", then pccl.connect(',
        ),
        (
            ("reno", "cubic"),
            ("reno", "cubic"),
            "on alpha: modprobe tcp_bbr && sysctl -w net.ipv4.tcp_congestion_control=bbr",
        ),
    ],
)
def test_cubic_on_a_path_that_loses_packets(allowed: tuple[str, ...], loaded: tuple[str, ...], change: str) -> None:
    measured = replace(on_host("client", allowed=allowed, loaded=loaded), up=lossy(20, 10), up_many=flow(150, 8))
    says(found(measured, "congestion control", "alpha"), "advice", "cubic takes each loss for a full queue", change)
    assert found(measured, "congestion control", "beta").level == "ok"


def test_bbr_on_a_path_that_loses_packets_is_fine() -> None:
    measured = good(up=lossy(20, 10, "bbr"), up_many=flow(150, 8))
    one = found(measured, "congestion control", "alpha")
    says(one, "ok", "bbr in force, allowed: reno, cubic", "")
    assert (one.values["in_force"], one.values["default"]) == ("bbr", "cubic")


def test_buffers_that_hold_less_than_the_path() -> None:
    """4 MiB of send buffer hold 0.85 of it: 356 Mbit/s at 80 ms, where the path carries 1,000: 10 MB."""
    measured = good(up=flow(340), up_many=flow(1000, 8))
    one = found(measured, "buffers", UP)
    says(one, "advice", "one connection can carry 357 Mbit/s at 80.00 ms; the path was seen to carry 1000 Mbit/s", "")
    wmem, streams = one.change.split("; or ")
    assert wmem == 'on alpha: sysctl -w net.ipv4.tcp_wmem="4096 16384 33554432"'
    assert streams.startswith("use 3 streams or more: pccl's planner takes 5 here")
    assert one.values["path_bytes"] == 10_000_000
    assert one.values["send_window_bytes"] == int(0.85 * (4 << 20))
    assert found(measured, "buffers", DOWN).level == "ok"


def test_the_receiver_may_be_what_holds_back() -> None:
    small = on_host("listener", receive_buffer=(4096, 131072, 6 << 20))
    measured = replace(small, up=flow(300), up_many=flow(330, 8))
    one = found(measured, "buffers", UP)
    assert one.change.startswith('on beta: sysctl -w net.ipv4.tcp_rmem="4096 131072 16777216"'), one.change
    both = replace(small, up=flow(300), up_many=flow(1000, 8))
    assert "tcp_rmem" in found(both, "buffers", UP).change
    assert "on alpha: sysctl -w net.ipv4.tcp_wmem" in found(both, "buffers", UP).change


def test_a_window_that_does_not_scale() -> None:
    measured = good(up=flow(6.5, 1, window_scaling=False), up_many=flow(50, 8))
    says(
        found(measured, "buffers", UP),
        "advice",
        "can carry 6.55 Mbit/s",
        "net.ipv4.tcp_window_scaling=1 on alpha and beta",
    )


def test_limits_that_are_not_known() -> None:
    measured = replace(
        on_host("client", send_buffer=None),
        listener=listener_place(host=on_host("listener", receive_buffer=None).listener.host),
    )
    assert found(measured, "buffers", UP).text == "the system does not tell its limits"
    assert found(measured, "buffers", UP).values["one_stream_limit_mbit_per_s"] is None


# -- the hosts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset_us", "bound_us", "level", "text"),
    [
        (3_600_000_000, 40_000, "advice", "beta is 3600000.00 ms ahead of alpha, give or take 40.00 ms"),
        (-900_000, 40_000, "advice", "alpha is 900.00 ms ahead of beta"),
        (520_000, 40_000, "ok", "beta is 520.00 ms ahead"),
        (20, 50, "ok", "beta is 0.02 ms ahead of alpha, give or take 0.05 ms"),
    ],
)
def test_clocks(offset_us: int, bound_us: int, level: str, text: str) -> None:
    one = found(good(clock=Clock(offset_us, bound_us)), "clocks", BOTH)
    says(one, level, text, "timedatectl set-ntp true" if level == "advice" else "")
    assert one.values == {"offset_ms": offset_us / 1e3, "bound_ms": bound_us / 1e3}


@pytest.mark.parametrize(
    ("changes", "level", "text", "change"),
    [
        ({"pccl": "0.2.0"}, "advice", "beta: pccl 0.2.0", "install the same pccl on alpha and beta"),
        ({"wire": 2}, "problem", "beta: pccl 0.1.0, wire 2", "they do not understand each other"),
        ({"control": 2}, "problem", "", "they do not understand each other"),
        ({"wire": 0, "engine_error": "no symbol x"}, "problem", "no engine on beta: no symbol x", "install pccl again"),
        ({"python": "3.10.1", "kernel": "5.4"}, "ok", "Python 3.10.1, Linux 5.4", ""),
    ],
)
def test_versions(changes: dict[str, Any], level: str, text: str, change: str) -> None:
    says(found(on_host("listener", **changes), "versions", BOTH), level, text, change)


@pytest.mark.parametrize(
    ("soft", "hard", "level", "change"),
    [
        (1024, 1024, "ok", ""),
        (256, 524288, "advice", "on beta before the program: ulimit -n 65536"),
        (256, 4096, "advice", "ulimit -n 4096"),
        (256, 256, "advice", "/etc/security/limits.conf"),
        (70, 70, "problem", "/etc/security/limits.conf"),
        (1 << 62, 1 << 62, "ok", ""),
    ],
)
def test_open_files(soft: int, hard: int, level: str, change: str) -> None:
    measured = on_host("listener", descriptors=soft, descriptors_max=hard)
    says(found(measured, "open files", "beta"), level, "", change)


def test_whatever_needs_a_change_says_which_and_nothing_else_does() -> None:
    for measured in (
        good(),
        good(up=flow(0), up_many=flow(0, 8)),
        good(up=lossy(20, 900), up_many=flow(900, 8), clock=Clock(10**9, 1)),
        on_host("client", wire=0, descriptors=10, descriptors_max=10),
        good(calls=calls_to_client((CLIENT, "timeout"))),
    ):
        for one in findings(measured):
            assert (one.level == "ok") == (one.change == ""), one


def test_rates_are_written_with_the_digits_that_mean_something() -> None:
    assert [rate_text(n / 8e-6) for n in (0, 0.123, 94.26, 1884.4, 21_930)] == [
        "0 Mbit/s",
        "0.123 Mbit/s",
        "94.3 Mbit/s",
        "1884 Mbit/s",
        "21.9 Gbit/s",
    ]
