"""What the doctor reads from the network and the kernel: handshake, messages, tcp_info, the host's files."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.doctor_facts import good

from pccl.doctor import handshake as h
from pccl.doctor.errors import Busy
from pccl.doctor.host import plain, this_host
from pccl.doctor.talk import CallMe, Done, Ping, Pong, decode, encode
from pccl.doctor.tcp_info import congestion_of, parse, tcp_info
from pccl.errors import AuthError, PcclError, ProtocolError

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def said_by_both(purpose: h.Purpose = h.Purpose.SESSION) -> bytes:
    return h.Hello(purpose, bytes(16), 0, b"n" * 32).pack() + h.challenge(b"c" * 32)


# -- handshake -------------------------------------------------------------------------------------------------------


def test_who_knows_the_secret_is_believed_and_nobody_else() -> None:
    said = said_by_both()
    assert h.proves(KEY, said, h.proof(KEY, said))
    assert not h.proves(KEY, said, h.proof(OTHER_KEY, said))
    assert not h.proves(KEY, said, h.verdict(KEY, said, h.Verdict.WELCOME)[4:]), "the acceptor's words sent back"
    assert not h.proves(KEY, said[:-1] + b"x", h.proof(KEY, said)), "another nonce"
    h.judge(KEY, said, h.verdict(KEY, said, h.Verdict.WELCOME))


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (h.verdict(OTHER_KEY, said_by_both(), h.Verdict.WELCOME), AuthError, "does not know the secret"),
        (h.verdict(KEY, said_by_both(h.Purpose.CALL), h.Verdict.WELCOME), AuthError, "does not know the secret"),
        (b"\0" + h.verdict(KEY, said_by_both(), h.Verdict.BUSY)[1:], AuthError, "does not know the secret"),
        (h.verdict(KEY, said_by_both(), h.Verdict.WRONG_SECRET), AuthError, "has another secret or run"),
        (h.verdict(KEY, said_by_both(), h.Verdict.BUSY), Busy, "is examining another machine"),
        (h.verdict(KEY, said_by_both(), h.Verdict.NOT_EXPECTED), ProtocolError, "did not expect this connection"),
        (b"\x09" + bytes(35), ProtocolError, "unknown verdict: 9"),
    ],
)
def test_verdicts(data: bytes, error: type[PcclError], text: str) -> None:
    with pytest.raises(error, match=text):
        h.judge(KEY, said_by_both(), data)


def test_no_proof_is_given_to_who_gave_none() -> None:
    assert h.verdict(KEY, said_by_both(), h.Verdict.WRONG_SECRET) == b"\x01" + bytes(35)


@given(st.binary(min_size=64, max_size=64))
def test_any_hello_is_read_or_refused(data: bytes) -> None:
    try:
        h.check_head(data[:10])
        hello = h.unpack_hello(data)
    except ProtocolError:
        return
    assert hello.pack()[:11] == data[:11]


def test_a_hello_is_read_as_it_was_written() -> None:
    hello = h.Hello(h.Purpose.STREAM, b"s" * 16, 7, b"n" * 32)
    assert len(hello.pack()) == 64
    assert h.unpack_hello(hello.pack()) == hello
    with pytest.raises(ProtocolError, match="unknown purpose: 9"):
        h.unpack_hello(hello.pack()[:10] + b"\x09" + hello.pack()[11:])
    with pytest.raises(ProtocolError, match="speaks version 2 of pccl doctor, this side version 1"):
        h.check_head(b"PCCLDOCT\x02\0")
    with pytest.raises(ProtocolError, match="does not speak pccl doctor"):
        h.check_head(b"HTTP/1.1 4")


# -- messages --------------------------------------------------------------------------------------------------------


def test_measurements_arrive_as_they_were_sent() -> None:
    assert decode(encode(Done(good()))) == Done(good())
    assert decode(encode(Pong(1, -2))) == Pong(1, -2)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decode(data)
    except ProtocolError as error:
        assert "does not decode" in str(error)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=255))
def test_damaged_measurements_are_measurements_or_a_protocol_error(place: int, value: int) -> None:
    data = bytearray(encode(Done(good())))
    data[place % len(data)] = value
    try:
        message = decode(bytes(data))
    except ProtocolError:
        return
    assert isinstance(message, Done)


@pytest.mark.parametrize(
    "message",
    [
        ["Unknown"],
        ["Ping", 1],
        ["CallMe", []],
        ["CallMe", ["1.2.3.4:5"] * 9],
        ["CallMe", ["1.2.3.4:5 rm"]],
        ["CallMe", ["x" * 200 + ":5"]],
        ["FlowPlan", "client", 33, 1.0, 0.0],
        ["FlowPlan", "client", 0, 1.0, 0.0],
        ["FlowPlan", "nobody", 1, 1.0, 0.0],
        ["FlowPlan", "client", 1, 1e9, 0.0],
        ["FlowPlan", "client", 1, float("nan"), 0.0],
        ["Failed", "\x1b[31mred"],
        ["Failed", "x" * 1000],
        ["Pong", 1 << 63, 0],
    ],
)
def test_messages_beyond_their_bounds_are_refused(message: list[object]) -> None:
    with pytest.raises(ProtocolError, match="does not decode"):
        decode(msgspec.msgpack.encode(message))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode(b"\x91" * 100_000)


def test_small_messages_fit_one_packet() -> None:
    """On a path that loses full packets, all but the last still arrive."""
    longest = CallMe(tuple("[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535" for _ in range(8)))
    assert max(len(encode(Ping())), len(encode(longest))) < 1000


# -- the kernel and the host -----------------------------------------------------------------------------------------


def test_tcp_info_is_read_where_the_kernel_puts_it() -> None:
    data = bytearray(232)
    data[5] = 1 | 2 | 4
    for offset, form, value in (
        (16, "=I", 1448),
        (60, "=I", 1500),
        (68, "=I", 85_000),
        (100, "=I", 17),
        (148, "=I", 80_000),
        (156, "=I", 9000),
        (168, "=Q", 3_000_000),
        (176, "=Q", 10),
        (184, "=Q", 20),
        (192, "=I", 8950),
    ):
        struct.pack_into(form, data, offset, value)
    info = parse(bytes(data))
    assert (info.mss_bytes, info.mtu_bytes, info.rtt_us, info.min_rtt_us) == (1448, 1500, 85_000, 80_000)
    assert (info.segments, info.resent, info.delivered) == (9000, 17, 8950)
    assert (info.busy_us, info.by_receiver_us, info.by_buffer_us) == (3_000_000, 10, 20)
    assert (info.window_scaling, info.selective_acks) == (True, True)


def test_an_old_kernel_tells_less() -> None:
    data = struct.pack("=8B", 1, 0, 0, 0, 0, 2, 0, 0) + bytes(96)
    info = parse(data)
    assert (info.selective_acks, info.window_scaling, info.segments, info.busy_us) == (True, False, 0, 0)
    assert parse(b"").mss_bytes == 0
    struct.pack_into("=I", never := bytearray(232), 148, 0xFFFFFFFF)
    assert parse(bytes(never)).min_rtt_us == 0


def test_tcp_info_of_a_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(accepted.recv(left))
            info = tcp_info(client)
            assert info.segments >= 2
            assert info.mss_bytes > 1000
            assert info.mtu_bytes > info.mss_bytes
            assert 0 < info.min_rtt_us < 10_000_000
            default = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
            assert congestion_of(client) == default


def test_what_the_host_says_of_itself(tmp_path: Path) -> None:
    (tmp_path / "tcp_wmem").write_text("4096\t16384\t4194304\n")
    (tmp_path / "tcp_rmem").write_text("4096 x 1\n")
    (tmp_path / "tcp_congestion_control").write_text("bbr\n")
    (tmp_path / "tcp_allowed_congestion_control").write_text("reno bbr\n")
    host = this_host(tmp_path)
    assert host.send_buffer == (4096, 16384, 4194304)
    assert host.receive_buffer is None, "what makes no sense is not guessed"
    assert (host.congestion, host.allowed, host.loaded) == ("bbr", ("reno", "bbr"), ())
    assert (host.wire, host.engine_error) == (1, "")
    assert host.descriptors > 0
    real = this_host()
    assert real.congestion in real.loaded or not real.loaded


def test_text_of_a_host_is_harmless() -> None:
    assert plain("a\x1b[31mb\n\u00e9") == "a?[31mb??"
    assert len(plain("x" * 1000)) == 120
