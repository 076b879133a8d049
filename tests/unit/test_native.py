"""The binding: numbers agree with the header, errors are typed, one engine lives and dies in order. No network of
others.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pccl import _native, types
from pccl.errors import ArgumentError, Closed, PcclError
from pccl.types import EpochConfig, MemberConfig, OpName, Status

HEADER = Path(__file__).resolve().parents[2] / "csrc" / "include" / "pccl_api.h"
ME, YOU = bytes(range(16)), bytes(range(1, 17))
KEY = b"key of a region."


def config(**changes: object) -> _native.EngineConfig:
    settings: dict[str, object] = {"peer_id": ME, "run": bytes(16), "key": bytes(32), "listen": "127.0.0.1:0"}
    return _native.EngineConfig(**(settings | changes))  # type: ignore[arg-type]


def close(engine: _native.Engine) -> None:
    engine.close()
    while not engine.closed:
        pass
    engine.free()


@pytest.mark.parametrize(
    ("enum", "prefix"), [(types.Status, "PCCL_"), (types.EventKind, "PCCL_EVENT_"), (types.Cause, "PCCL_CAUSE_")]
)
def test_numbers_are_those_of_the_header(enum: type, prefix: str) -> None:
    numbers = {name: int(number) for name, number in re.findall(r"\b(PCCL_\w+) = (\d+)", HEADER.read_text())}
    for member in enum:
        assert numbers[prefix + member.name] == member, member


def test_facts() -> None:
    assert _native.kernels() in ("avx512", "avx2", "neon", "scalar")
    assert _native.wire_version() == 1
    assert _native.crc32c(b"123456789") == 0xE3069283
    assert _native.crc32c(b"6789", _native.crc32c(b"12345")) == 0xE3069283
    assert _native.hmac_sha256(b"key", b"data") == hmac.new(b"key", b"data", hashlib.sha256).digest()
    assert len({_native.err_name(status) for status in Status}) >= 14
    assert _native.describe_op(0)
    first = _native.now_ns()
    assert first <= _native.lib.pccl_now_ns() <= _native.now_ns(), "not the engine's clock"


def test_reduce() -> None:
    a, b = np.arange(5, dtype=np.float32), np.full(5, 2, np.float32)
    out = np.empty(5, np.float32)
    _native.reduce(out, [a, b], dtype=1, redop=_native.RedOp.AVG, count=5, divisor=2)
    assert out.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    with pytest.raises(ArgumentError):
        _native.reduce(out, [a, b], dtype=6, redop=_native.RedOp.AVG, count=5, divisor=2)
    with pytest.raises(ArgumentError):
        _native.reduce(out, [a, b], dtype=1, redop=_native.RedOp.SUM, count=5, isa="abacus")


@pytest.mark.parametrize(
    "changes",
    [
        {"peer_id": b"short"},
        {"key": b"short"},
        {"listen": "x" * 64},
        {"listen": "nonsense"},
        {"transport": "carrier pigeon"},
    ],
)
def test_a_bad_configuration_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PcclError):
        _native.Engine(config(**changes))


def test_one_peer_alone() -> None:
    """Life, an epoch, an op, a freeze with its report, the end: every command of the API on one engine."""
    engine = _native.Engine(config())
    assert engine.port > 0 and engine.event_fd > 0
    engine.start()
    with pytest.raises(ArgumentError):
        engine.free()
    me = MemberConfig(id=ME, since=0, dial=False, address="")
    engine.prepare([me], 1)
    data = np.arange(4, dtype=np.int64)
    address, _hold = _native.pin(data)
    request = _native.OpRequest(7, _native.Kind.ALL_REDUCE, 7, 0, 0, 0, 4, address, address)
    request.name = OpName(0, 0, 0)
    engine.submit(request)
    engine.freeze(1)
    wait_for(engine, types.EventKind.FROZEN)
    states, lanes = engine.frozen()
    assert [(state.name, state.token) for state in states] == [(OpName(0, 0, 0), 7)]
    assert lanes == {0: {0: 1}}
    engine.configure(EpochConfig(1, 0, 1, [me], [], 1, 65536, 1 << 20))
    event = wait_for(engine, types.EventKind.OP)
    assert (event.token, event.status, event.member_count) == (7, Status.OK, 1)
    assert engine.read_desc(event.desc) == types.OpDesc(True, types.Algorithm.MESH, 0, 32)
    assert engine.read_desc(0) is None
    assert data.tolist() == [0, 1, 2, 3]
    wait_until(engine, lambda figures: figures.ops_committed == 1)
    assert engine.links() == []
    engine.kill_stream(bytes(16))
    engine.advance(1)
    close(engine)
    engine.close()
    engine.free()
    assert engine.events() == []
    for call in (engine.stats, engine.links, lambda: engine.submit(request), lambda: engine.advance(2)):
        with pytest.raises(Closed):
            call()


def wait_for(engine: _native.Engine, kind: int) -> types.Event:
    """The next event of a kind; waits on the descriptor, as the control thread does."""
    import select

    poller = select.poll()
    poller.register(engine.event_fd, select.POLLIN)
    while poller.poll(5000):
        for event in engine.events():
            if event.kind == kind:
                return event
    raise AssertionError(f"no event {kind} came")


def wait_until(engine: _native.Engine, holds: Callable[[types.EngineStats], bool]) -> None:
    """Figures are those of the end of a turn; an event may be there a moment before."""
    deadline = time.monotonic() + 5.0
    while not holds(figures := engine.stats()):
        assert time.monotonic() < deadline, figures


@pytest.mark.parametrize("how", ["abandon", "fail_all", "close"])
def test_ops_that_cannot_run_end_once(how: str) -> None:
    engine = _native.Engine(config())
    engine.start()
    request = _native.OpRequest(9, _native.Kind.BARRIER, 0, 0, 0, 0, 0, 0, 0)
    engine.submit(request)
    if how == "abandon":
        engine.abandon(9, Status.ELOST)
    elif how == "fail_all":
        engine.fail_all(Status.ELOST)
    else:
        engine.close()
    event = wait_for(engine, types.EventKind.OP)
    assert (event.token, event.status) == (9, Status.ECLOSED if how == "close" else Status.ELOST)
    close(engine)


def pair() -> tuple[_native.Engine, _native.Engine]:
    """Two engines of no group, acquainted with each other."""
    engines = _native.Engine(config()), _native.Engine(config(peer_id=YOU))
    for engine, other in (engines, engines[::-1]):
        engine.start()
        member = MemberConfig(other.peer_id, 0, engine.peer_id < other.peer_id, f"127.0.0.1:{other.port}")
        engine.acquaint(member, 2)
    return engines


def test_a_transfer() -> None:
    giver, taker = pair()
    source, target = np.arange(100_000, dtype=np.uint8), np.zeros(60_000, np.uint8)
    there, here = source.ctypes.data, target.ctypes.data
    giver.offer(types.Region(KEY, 3, there, source.nbytes, 11), whole=False)
    runs = [(70_000, 20_000, here), (10, 39_000, here + 20_000), (0, 10, here + 59_000)]
    taker.fetch(types.FetchRequest(ME, KEY, 3, runs, 12, priority=1))
    giver.extend(KEY, 3, 0, 50_000)
    giver.extend(KEY, 3, 50_000, 50_000)
    event = wait_for(taker, types.EventKind.FETCH)
    assert (event.token, event.status, event.received_bytes, event.peer) == (12, Status.OK, 59_010, ME)
    expected = [source[70_000:90_000], source[10:39_010], source[:10], np.zeros(990, np.uint8)]
    assert np.array_equal(target, np.concatenate(expected))
    wait_until(taker, lambda figures: figures.transfer_received_bytes == 59_010 and figures.transfers_pending == 0)
    giver.withdraw(KEY, 3)
    event = wait_for(giver, types.EventKind.WITHDRAWN)
    assert (event.token, event.status) == (11, Status.OK)
    taker.fetch(types.FetchRequest(ME, KEY, 3, runs, 13))
    event = wait_for(taker, types.EventKind.FETCH)
    assert (event.token, event.status) == (13, Status.EGONE)
    close(giver)
    close(taker)


def test_how_fetches_end() -> None:
    giver, taker = pair()
    memory = np.zeros(10, np.uint8)
    address = memory.ctypes.data
    giver.offer(types.Region(KEY, 0, address, 10, 1), whole=False)
    giver.limit(2, 1000)
    taker.fetch(types.FetchRequest(ME, KEY, 0, [(0, 10, address)], 2))
    taker.cancel_fetch(2)
    assert wait_for(taker, types.EventKind.FETCH).status == Status.ECANCELLED
    deadline_ns = _native.now_ns() + 20_000_000
    taker.fetch(types.FetchRequest(ME, KEY, 0, [(0, 10, address)], 3, deadline_ns=deadline_ns))
    assert wait_for(taker, types.EventKind.FETCH).status == Status.ETIMEOUT
    assert _native.now_ns() >= deadline_ns
    taker.fetch(types.FetchRequest(ME, KEY, 0, [(0, 10, address)], 4))
    taker.unacquaint(ME)
    assert wait_for(taker, types.EventKind.FETCH).status == Status.EPEER
    with pytest.raises(ArgumentError, match="runs"):
        taker.fetch(types.FetchRequest(ME, KEY, 0, [], 5))
    with pytest.raises(ArgumentError, match="itself"):
        taker.fetch(types.FetchRequest(YOU, KEY, 0, [(0, 10, address)], 5))
    with pytest.raises(ArgumentError, match="16 bytes"):
        giver.withdraw(b"short", 0)
    with pytest.raises(ArgumentError, match="priority"):
        giver.limit(3, 0)
    giver.close()
    assert wait_for(giver, types.EventKind.WITHDRAWN).status == Status.ECLOSED
    close(giver)
    close(taker)


def test_a_simulated_engine() -> None:
    sim = _native.Sim(5)
    engine = _native.Engine(config(transport="sim", listen="sim:1", sim=sim))
    assert engine.closed
    sim.set_path(1, 2, _native.SimPath(delay_ns=1000, cut=True))
    assert engine.step(0) >= 0
    assert sim.advance(10) == 0
    assert sim.next() == 2**64 - 1
    assert not sim.reset(1, 2)
    sim.crash(2)
    assert sim.digest() == sim.digest()
    close(engine)
    sim.free()
    sim.free()
