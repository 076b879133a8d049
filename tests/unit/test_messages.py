"""Control messages: what goes in comes out, and hostile bytes give ProtocolError, never anything else."""

from __future__ import annotations

import contextlib
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pccl import errors, keys
from pccl import messages as m
from pccl.types import Status

peers = st.binary(min_size=16, max_size=16)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
numbers = st.integers(1, 2**62 - 1)
boundaries = st.integers(0, m.BOUNDARY_MAX)
keys32 = st.binary(min_size=32, max_size=32)
text = st.text(st.characters(codec="utf-8"), max_size=60)
reals = st.floats(0, 1e6)
addresses = st.builds("{}:{}".format, st.sampled_from(["10.0.0.1", "[::1]", "sim"]), st.integers(0, 65535))
ops = st.builds(m.OpRef, u32, u64, u32)
needs = st.lists(peers, max_size=2).map(tuple)
pending = st.builds(m.Pending, ops, st.booleans(), st.booleans(), needs, text, st.booleans())
member = st.builds(m.Member, peers, boundaries, addresses, text, u32, st.integers(0, 65535))
members = st.lists(member, min_size=1, max_size=4).map(tuple)
reports = st.lists(st.builds(m.LinkReport, peers, u32, u64, u32), max_size=3).map(tuple)
triples = st.lists(st.tuples(u32, u32, u32), max_size=3).map(tuple)
plans = st.builds(
    m.Plan, st.integers(1, 64), st.integers(1, 2**14).map(lambda n: n * 64), u64, st.integers(0, 3), reals, text
)
verdicts = st.lists(st.builds(m.Verdict, ops, st.integers(0, 14), text), max_size=3).map(tuple)
status = st.builds(
    m.PeerStatus, peers, st.integers(-1, 99), text, u32, addresses, u32, u32, u32, reals, reals, reals, st.booleans()
)
links = st.lists(st.builds(m.LinkStatus, u32, u32, u32, u64, u32, u32, text, st.integers(-1, 99)), max_size=2).map(
    tuple
)
counts = st.lists(st.tuples(text, u64), max_size=2).map(tuple)
logs = st.builds(m.LogEntry, reals, u32, peers | st.just(b""), text, text)
groups = st.builds(
    m.GroupStatus,
    *(u32, text, u32, u32, u32, u32, st.none() | plans),
    *(st.lists(status, max_size=2).map(tuple), st.lists(status, max_size=2).map(tuple)),
    st.lists(logs, max_size=2).map(tuple),
    st.none() | st.builds(m.Reality, reals, reals, u64),
    *(links, counts, counts),
)
one = st.just(m.VERSION)
kinds = st.sampled_from(["mismatch", "overdue", "cancelled"])
refusals = st.sampled_from(["version", "run", "group", "malformed", "closed", "token"])
lanes = st.dictionaries(u32, st.dictionaries(u64, u32, max_size=4), max_size=3)

TO_COORDINATOR = st.one_of(
    st.builds(m.Join, one, text, u32, peers, st.lists(addresses, min_size=1, max_size=3).map(tuple), text, u32, u32),
    st.builds(
        m.Heartbeat,
        one,
        u32,
        u32,
        u32,
        u64,
        u64,
        reports,
        st.none() | st.builds(m.Achieved, u32, u32, u64, u64),
        st.none() | st.tuples(u64, u64, u64, u64),
        st.booleans(),
    ),
    st.builds(m.Held, one, u32, boundaries),
    st.builds(m.Frozen, one, u32, u32, lanes, st.lists(pending, max_size=3).map(tuple)),
    st.builds(m.Suspect, one, peers, st.integers(0, 6), st.integers(-5, 200), u32),
    st.builds(m.Healed, one, peers),
    st.builds(m.OpFault, one, kinds, ops, u32, peers | st.just(b""), text, text),
    st.builds(m.Seek, one, u32, st.lists(peers, max_size=3).map(tuple), st.lists(st.tuples(peers, numbers)).map(tuple)),
    st.builds(m.ProbeReply, one, u32),
    st.builds(m.Leave, one, text),
    st.builds(m.StatusRequest, one, text),
    st.builds(m.KeysRequest, one, text),
)
TO_PEER = st.one_of(
    st.builds(m.Welcome, one, reals, u32, u32),
    st.builds(m.Refused, one, refusals, text),
    st.builds(m.Keys, one, keys32, keys32, keys32),
    st.builds(m.Ack, one, u32, u32),
    st.builds(m.Hold, one, u32, u32, st.integers(1, 64), members),
    st.builds(m.Acquaint, one, members, st.integers(1, 64), st.booleans()),
    st.builds(
        m.Contacts,
        one,
        u32,
        st.lists(st.builds(m.Contact, member, numbers), max_size=3).map(tuple),
        st.lists(st.tuples(peers, text), max_size=3).map(tuple),
        st.integers(1, 64),
        st.booleans(),
    ),
    st.builds(m.Release, one, u32),
    st.builds(m.Freeze, one, u32, u32),
    st.builds(m.Epoch, one, u32, boundaries, u32, members, plans, verdicts, text, u32, reals, triples, triples),
    st.builds(m.Probe, one, u32),
    st.builds(m.Measure, one, peers, st.integers(1, 64 << 20), st.floats(1e-3, 10.0), u32),
    st.builds(m.Evicted, one, text),
    st.builds(m.Goodbye, one),
    st.builds(m.Status, one, text, reals, u64, st.lists(groups, max_size=2).map(tuple)),
)


@given(TO_COORDINATOR)
def test_messages_to_the_coordinator_come_back(message: m.ToCoordinator) -> None:
    assert m.decode_at_coordinator(m.encode(message)) == message


@given(TO_PEER)
def test_messages_to_a_peer_come_back(message: m.ToPeer) -> None:
    assert m.decode_at_peer(m.encode(message)) == message


def test_every_message_is_covered() -> None:
    assert len(get_args(m.ToCoordinator)) == 12
    assert len(get_args(m.ToPeer)) == 15


def decode_both(data: bytes) -> None:
    for decode in (m.decode_at_coordinator, m.decode_at_peer):
        with contextlib.suppress(errors.ProtocolError):
            assert isinstance(decode(data), m.Message)


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    decode_both(data)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | text | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=3),
    max_leaves=20,
)
tags = st.sampled_from([kind.__name__ for kind in (*get_args(m.ToCoordinator), *get_args(m.ToPeer))])


@given(tags, st.lists(anything, max_size=9))
def test_any_fields_under_a_real_name(tag: str, fields: list[object]) -> None:
    decode_both(msgspec.msgpack.encode([tag, m.VERSION, *fields]))


@given(TO_COORDINATOR | TO_PEER, st.data())
def test_damaged_messages(message: m.Message, data: st.DataObject) -> None:
    good = bytearray(m.encode(message))
    place = data.draw(st.integers(0, len(good) - 1))
    decode_both(bytes(good[:place]))
    good[place] ^= data.draw(st.integers(1, 255))
    decode_both(bytes(good))


@pytest.mark.parametrize("data", [b"\x91" * 200_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b""])
def test_bombs(data: bytes) -> None:
    for decode in (m.decode_at_coordinator, m.decode_at_peer):
        with pytest.raises(errors.ProtocolError):
            decode(data)


def test_limits() -> None:
    with pytest.raises(errors.ProtocolError, match="larger than"):
        m.decode_at_peer(b"\0" * (m.MESSAGE_BYTES_MAX + 1))
    many = tuple(m.Verdict(m.OpRef(0, 0, n), 0, "x" * 400) for n in range(m.PENDING_MAX))
    plan = m.Plan(1, 64, 0)
    with pytest.raises(errors.ProtocolError, match="larger than"):
        m.encode(m.Epoch(1, 1, 0, 0, (m.Member(b"p" * 16, 0, "h:1", "h"),), plan, many, "", 1, 5.0))
    lanes = {b: {2**63 + n: 2**32 - 1 for n in range(b * m.PENDING_MAX)} for b in (0, 1)}
    full = m.Frozen(1, 1, 1, lanes, tuple(m.Pending(m.OpRef(0, 2**64 - 1, n), True, False, (b"p" * 16,) * 2, "x" * 120)
                                       for n in range(m.PENDING_MAX)))  # fmt: skip
    assert m.decode_at_coordinator(m.encode(full)) == full, "the most a peer may report fits"
    for address in ("no port", "host:1234567", "a b:1", "h:1\n", ""):
        with pytest.raises(errors.ProtocolError):
            m.decode_at_coordinator(m.encode(m.Join(1, "r", 0, b"p" * 16, (address,), "h", 1, 1)))


@pytest.mark.parametrize("fields", [["Join", 2, "other", "fields"], ["Goodbye", 7], ["New", 9]])
def test_another_version_is_told_from_garbage(fields: list[object]) -> None:
    with pytest.raises(m.WrongVersion):
        m.decode_at_coordinator(msgspec.msgpack.encode(fields))


def test_keys_depend_on_secret_run_and_purpose() -> None:
    base = keys.run_keys(b"secret", "run")
    assert base == keys.run_keys(keys.as_secret("secret"), "run")
    others = [keys.run_keys(b"Secret", "run"), keys.run_keys(b"secret", "Run"), keys.run_keys(b"", "run")]
    found = [k for r in (base, *others) for k in (r.data, r.coordinator.public, r.peer.public)]
    assert len(set(found)) == len(found)
    assert len(base.data) == 32 and len(base.coordinator.public) == 40
    assert len(keys.run_id("run")) == 16 and keys.as_secret(None) == b""


def test_errors_by_code() -> None:
    for code in Status:
        error = errors.error_of(code, "text", peer=b"\xab" * 16, epoch=3, op="all_reduce")
        assert str(error) == "text (peer abababab, epoch 3, op all_reduce)"
    assert isinstance(errors.error_of(Status.ETIMEOUT, ""), TimeoutError)
    assert issubclass(errors.Evicted, errors.PeerLost) and errors.class_of(99) is errors.PcclError
