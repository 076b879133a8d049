"""Tokens: what holds, what does not and why, and what a holder can find out."""

from __future__ import annotations

import base64

import msgspec
import pytest
import zmq.utils.z85

from pccl import keys, tokens
from pccl import messages as m
from pccl.coordinator.admission import GUEST, PEER, Admission
from pccl.errors import ArgumentError
from pccl.tokens import DAY_S

SECRET, RUN, NOW = b"a secret of this test", "llama", 1_800_000_000.0
HOUR_S = 3600


def minted(secret: bytes = SECRET, run: str = RUN, ttl_s: float = HOUR_S, now_s: float = NOW) -> str:
    return tokens.mint(secret, run, ttl_s, now_s)


def data_of(token: str) -> bytes:
    encoded = token.removeprefix(tokens.PREFIX)
    return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))


def text_of(data: bytes) -> str:
    return tokens.PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")


def test_a_token_holds_until_it_expires() -> None:
    token = minted()
    said = tokens.read(token)
    assert (said.run, said.expires_s) == (RUN, int(NOW) + HOUR_S)
    assert tokens.refusal(SECRET, RUN, token, NOW) == ""
    assert tokens.refusal(SECRET, RUN, token, NOW + HOUR_S - 1) == ""
    late = tokens.refusal(SECRET, RUN, token, NOW + HOUR_S)
    assert late == "it expired at 2027-01-15 09:00:00 UTC"


def test_two_tokens_are_never_alike() -> None:
    assert minted() != minted()


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (minted(secret=b"another"), "it was not made with the secret of this run"),
        (minted(run="alpaca"), "it is a token of run 'alpaca'"),
        ("", "it is no token of this run"),
        ("pccl-token-1.", "it is no token of this run"),
        (tokens.PREFIX + "!" * 300, "it is no token of this run"),
        (text_of(b"\x91" * 700), "it is no token of this run"),
        ("x" * 5000, "it is no token of this run"),
    ],
)
def test_what_does_not_hold(token: str, reason: str) -> None:
    assert tokens.refusal(SECRET, RUN, token, NOW) == reason


def test_nothing_of_a_token_can_be_changed() -> None:
    data = data_of(minted())
    assert text_of(data) != minted() and tokens.refusal(SECRET, RUN, text_of(data), NOW) == ""
    for place in range(len(data)):
        forged = bytearray(data)
        forged[place] ^= 1
        assert tokens.refusal(SECRET, RUN, text_of(bytes(forged)), NOW) != "", place
    body = msgspec.msgpack.decode(data[:-32])
    body[1] += 10 * HOUR_S
    assert tokens.refusal(SECRET, RUN, text_of(msgspec.msgpack.encode(body) + data[-32:]), NOW) != ""


def test_no_secret_no_token() -> None:
    with pytest.raises(ArgumentError, match="there is none"):
        minted(secret=b"")
    assert tokens.refusal(b"", RUN, minted(), NOW) != ""


@pytest.mark.parametrize("ttl_s", [0, -1, 31 * DAY_S])
def test_how_long_a_token_may_be_good(ttl_s: float) -> None:
    with pytest.raises(ArgumentError, match="30 days"):
        minted(ttl_s=ttl_s)


def test_what_is_no_token_is_not_repeated() -> None:
    with pytest.raises(ArgumentError) as caught:
        tokens.read("hunter2")
    assert "hunter2" not in str(caught.value)


def test_a_holder_knows_no_key_of_the_run_but_the_public_one() -> None:
    token = minted()
    every = keys.run_keys(SECRET, RUN)
    hidden = [SECRET, every.data, every.tls, keys.derive(SECRET, RUN, "token")]
    hidden += [zmq.utils.z85.decode(pair.secret) for pair in (every.coordinator, every.peer)]
    assert not any(key in data_of(token) for key in hidden)
    said = tokens.read(token)
    assert said.coordinator == every.coordinator.public
    assert token not in repr(said) and said.guest.secret.decode() not in repr(said)


# -- the coordinator's side ----------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Admission:
    return Admission(SECRET, RUN, lambda: NOW)


def test_who_is_let_in(gate: Admission) -> None:
    assert gate.user_of(keys.run_keys(SECRET, RUN).peer.public) == PEER
    assert gate.user_of(keys.run_keys(SECRET, "alpaca").peer.public) == ""
    for days, user in ((-2, ""), (-1, GUEST), (0, GUEST), (30, GUEST), (31, "")):
        pair = tokens.guest_pair(SECRET, RUN, int(NOW) // DAY_S + days)
        assert gate.user_of(pair.public) == user, days
    assert Admission(b"", RUN).user_of(tokens.guest_pair(b"", RUN, int(NOW) // DAY_S).public) == ""


def test_zap(gate: Admission, caplog: pytest.LogCaptureFixture) -> None:
    head = [b"1.0", b"7", b"pccl", b"192.0.2.1", b"", b"CURVE"]
    peer = zmq.utils.z85.decode(keys.run_keys(SECRET, RUN).peer.public)
    assert gate.zap([*head, peer]) == [b"1.0", b"7", b"200", b"OK", b"peer", b""]
    for request in (head, [], [*head, b"short"], [*head, bytes(32)], [*head[:5], b"PLAIN", peer]):
        assert gate.zap(request)[2] == b"400"
    assert "refused a token, 192.0.2.1: its key is not of this run" in caplog.text


def test_keys_for_who_has_a_token(gate: Admission) -> None:
    answer = gate.answer(m.encode(m.KeysRequest(m.VERSION, minted())), "192.0.2.1")
    every = keys.run_keys(SECRET, RUN)
    assert answer == m.Keys(m.VERSION, every.data, every.tls, zmq.utils.z85.decode(every.peer.secret))


def test_a_refusal_says_why_and_is_logged_with_the_address(gate: Admission, caplog: pytest.LogCaptureFixture) -> None:
    token = minted(now_s=NOW - 2 * HOUR_S)
    answer = gate.answer(m.encode(m.KeysRequest(m.VERSION, token)), "192.0.2.1")
    assert isinstance(answer, m.Refused) and answer.kind == "token"
    assert answer.reason == "the token is refused: it expired at 2027-01-15 07:00:00 UTC"
    assert "refused a token, 192.0.2.1: it expired at" in caplog.text and token not in caplog.text


def test_a_guest_can_ask_for_keys_and_nothing_else(gate: Admission) -> None:
    for message in (m.Leave(m.VERSION, ""), m.StatusRequest(m.VERSION, RUN), m.ProbeReply(m.VERSION, 1)):
        assert gate.answer(m.encode(message), "192.0.2.1") is None
    assert gate.answer(b"\xc1", "192.0.2.1") is None
    other = gate.answer(m.encode(m.KeysRequest(m.VERSION + 1, "")), "192.0.2.1")
    assert isinstance(other, m.Refused) and other.kind == "version"
