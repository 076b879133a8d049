"""LocalComm: the same bytes, results, errors and memberships as real peers have, by threads that cannot hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import pccl
from pccl.coordinator.server import Coordinator
from pccl.errors import ArgumentError, Cancelled, Closed, MismatchError, PeerLost, Timeout
from pccl.optim.local import LocalComm, LocalCommunicator

PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), thread


@pytest.fixture
def four() -> Iterator[LocalComm]:
    with LocalComm(4, op_timeout=PATIENCE_S) as comms:
        yield comms


class Aside:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._outcome.append(call())
        except Exception as error:  # noqa: BLE001 - judged by the test
            self._outcome.append(error)

    def __call__(self) -> Any:
        self._thread.join(PATIENCE_S)
        assert self._outcome, "it hangs"
        return self._outcome[0]

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def values(rank: int, count: int, dtype: Any = np.float32) -> Any:
    return (np.random.default_rng(rank).standard_normal(count) * (1 + rank)).astype(dtype)


# -- the sequence and its members ------------------------------------------------------------------------------------


def test_ids_come_from_the_seed_and_are_never_used_again() -> None:
    with LocalComm(3, seed=5) as first, LocalComm(3, seed=5) as second, LocalComm(3) as third:
        assert [comm.peer_id for comm in first] == [comm.peer_id for comm in second]
        assert not {comm.peer_id for comm in first} & {comm.peer_id for comm in third}
        assert len(first) == 3 and first[-1] is first[2] and first[:2] == [first[0], first[1]]
        assert [comm.rank for comm in first] == [0, 1, 2] and first[0].peers == tuple(c.peer_id for c in first)
        assert all(isinstance(comm, pccl.Communicator) and len(comm.peer_id) == 16 for comm in first)
        seen = {comm.peer_id for comm in first}
        first[1].die()
        for comm in (first[0], first[2]):
            comm.advance()
        joined = Aside(first.join)
        wait_for(first, lambda: len(first) == 4)
        first[0].advance()
        first[2].advance()
        assert joined() is first[3] and first[3].peer_id not in seen


def test_bad_arguments_are_named() -> None:
    for replicas in (0, -1, True, 1.5):
        with pytest.raises(ArgumentError, match="replicas"):
            LocalComm(replicas)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="op_timeout"):
        LocalComm(1, op_timeout=0)
    with LocalComm(1) as comms:
        with pytest.raises(ArgumentError, match="transfers"):
            _ = comms[0].transfers
        with pytest.raises(ArgumentError, match="codec must be one of"):
            comms[0].all_reduce(values(0, 3), codec="int7")


def test_run_returns_in_order_and_can_be_called_again(four: LocalComm) -> None:
    assert four.run(lambda comm: comm.rank) == [0, 1, 2, 3]
    assert four.run(lambda comm: comm.all_reduce(np.ones(1)).tensor[0]) == [4.0] * 4


def test_an_exception_of_one_is_raised_and_the_others_go_on(four: LocalComm) -> None:
    worlds = []

    def train(comm: LocalCommunicator) -> None:
        if comm is four[2]:
            raise ZeroDivisionError("of one")
        worlds.append(comm.all_reduce(np.ones(5)).world_size)

    with pytest.raises(ZeroDivisionError, match="of one"):
        four.run(train)
    assert worlds == [3, 3, 3] and four[2].closed and four[0].world_size == 3


def test_who_was_killed_on_purpose_has_no_result(four: LocalComm) -> None:
    def train(comm: LocalCommunicator) -> int:
        if comm is four[0]:
            comm.die()
        return comm.all_reduce(np.ones(5)).world_size

    assert four.run(train) == [None, 3, 3, 3]


# -- what ops give ---------------------------------------------------------------------------------------------------


def real(n: int, body: Callable[[pccl.Communicator], Any]) -> list[Any]:
    """Results of real peers on loopback, by rank."""
    outcomes: dict[int, Any] = {}

    def peer(address: str) -> None:
        with pccl.connect(address, secret="s", listen="127.0.0.1:0", op_timeout=PATIENCE_S) as comm:
            outcomes[comm.rank] = body(comm)
            comm.barrier(tag="end")

    with Coordinator(min_peers=n, secret="s") as coordinator:
        threads = [threading.Thread(target=peer, args=(coordinator.address,), daemon=True) for _ in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE_S)
    return [outcomes[rank] for rank in range(n)]


def everything(comm: pccl.Communicator) -> dict[str, Any]:
    """Every kind of op, with what it gave and what it moved."""
    given: dict[str, Any] = {}

    def note(name: str, result: Any) -> None:
        data = None if result.tensor is None else np.asarray(result.tensor).tobytes()
        given[name] = data, result.world_size, result.offset, result.bytes_sent, result.bytes_received

    rank, world = comm.rank, comm.world_size
    for codec in (None, "bf16", "fp16", "int8", "e3m0"):
        for way in ("mesh", "one_round"):
            for count in (0, 1, 700, 5003):
                data = values(rank, count)
                name = f"{codec} {way} {count}"
                note(name, comm.all_reduce(data.copy(), op="avg", codec=codec, algorithm=way, tag=name))  # type: ignore[arg-type]
    for dtype, op in ((np.float16, "sum"), (np.float64, "prod"), (np.int32, "min"), (np.uint8, "max")):
        note(f"{op}", comm.all_reduce(values(rank, 777).astype(dtype), op=op, algorithm="mesh"))  # type: ignore[arg-type]
    note("scatter", comm.reduce_scatter(values(rank, 1001)))
    note("gather", comm.all_gather(values(rank, 10)))
    note("exchange", comm.all_to_all(values(rank, world * 3).reshape(world, 3)))
    note("broadcast", comm.broadcast(values(rank, 12), root=1))
    if rank < 2:
        note("pair", comm.send(values(7, 9), 1) if rank == 0 else comm.recv(np.zeros(9, np.float32), 0))
    note("barrier", comm.barrier())
    return given


def test_everything_is_as_real_peers_have_it() -> None:
    expected = real(3, everything)
    with LocalComm(3, op_timeout=PATIENCE_S) as comms:
        found = comms.run(everything)
    for rank in range(3):
        assert found[rank].keys() == expected[rank].keys()
        for name, want in expected[rank].items():
            assert found[rank][name] == want, f"rank {rank}, {name}"


@pytest.mark.parametrize("codec", [None, "bf16", "fp16", "int8", "e3m0"])
def test_all_have_the_same_bytes_and_inputs_are_preserved(four: LocalComm, codec: str | None) -> None:
    def body(comm: LocalCommunicator) -> Any:
        data = torch.from_numpy(values(comm.rank, 1000))
        before, out = data.clone(), torch.empty_like(data)
        result = comm.all_reduce(data, op="sum", out=out, codec=codec)
        assert torch.equal(data, before) and result.tensor is out
        return out.numpy()

    outs = four.run(body)
    exact = np.sum([values(rank, 1000).astype(np.float64) for rank in range(4)], axis=0)
    assert all(out.tobytes() == outs[0].tobytes() for out in outs)
    error = np.linalg.norm(outs[0] - exact) / np.linalg.norm(exact)
    low, high = {
        None: (0, 1e-6),
        "bf16": (1e-4, 5e-3),
        "fp16": (1e-5, 1e-3),
        "int8": (1e-3, 2e-2),
        "e3m0": (5e-2, 0.4),
    }[codec]
    assert low <= error < high


def test_narrow_floats_are_added_as_float32(four: LocalComm) -> None:
    def body(comm: LocalCommunicator) -> float:
        data = torch.tensor([256.0, 1.0, 1.0, 1.0][comm.rank : comm.rank + 1], dtype=torch.bfloat16)
        return float(comm.all_reduce(data).tensor)

    assert four.run(body) == [260.0] * 4  # rounded once: 259 to even; one at a time would stay at 256


@pytest.mark.parametrize(("codec", "bits"), [(None, 32), ("bf16", 16), ("int8", 8.125), ("e3m0", 4.125)])
def test_traffic_is_that_of_a_mesh(four: LocalComm, codec: str | None, bits: float) -> None:
    count = 4 * 256 * 3

    def body(comm: LocalCommunicator) -> Any:
        return comm.all_reduce(values(comm.rank, count), codec=codec)

    for comm, result in zip(four, four.run(body), strict=True):
        assert result.bytes_sent == result.bytes_received == 2 * count * bits / 8 * 3 / 4
        stats = comm.stats()
        assert stats["sent_bytes"] == result.bytes_sent and stats["ops_committed"] == 1 and stats["links"] == []


def test_a_list_is_one_call(four: LocalComm) -> None:
    def body(comm: LocalCommunicator) -> Any:
        tensors = [torch.full((3,), 1.0), torch.full((2, 2), 2, dtype=torch.int32), torch.full((5,), 3.0)]
        result = comm.all_reduce(tensors)
        return [tensor.sum().item() for tensor in tensors], len(result.parts)

    assert four.run(body) == [([12.0, 32, 60.0], 2)] * 4


# -- matching --------------------------------------------------------------------------------------------------------


def test_ops_meet_by_tag_or_by_order(four: LocalComm) -> None:
    def body(comm: LocalCommunicator) -> list[float]:
        names = ["a", "b", "c"]
        order = names if comm.rank % 2 else names[::-1]
        works = {}
        for name in order:
            works[name] = comm.all_reduce(np.full(1, float(names.index(name))), tag=name, async_op=True)
        plain = [comm.all_reduce(np.full(1, 10.0 + i), async_op=True) for i in range(2)]
        comm.advance()
        given = [float(work.wait(PATIENCE_S).tensor[0]) for work in [*works.values(), *plain]]
        return [*given, comm.all_reduce(np.full(1, 7.0), tag="a").tensor[0]]

    found = four.run(body)
    assert found[0] == [8, 4, 0, 40, 44, 28] and found[1] == [0, 4, 8, 40, 44, 28]


def test_who_calls_otherwise_is_told_and_so_are_those_who_come_later(four: LocalComm) -> None:
    sizes = [3, 3, 4, 3]
    works = [four[rank].all_reduce(np.ones(sizes[rank]), async_op=True) for rank in range(4)]
    for work in works:
        with pytest.raises(MismatchError, match=r"called all_reduce sum .*\[4\].* called all_reduce sum .*\[3\]"):
            work.wait(PATIENCE_S)
    assert four.run(lambda comm: comm.all_reduce(np.ones(2)).world_size) == [4] * 4


def test_a_deadline_ends_the_op_on_every_peer(four: LocalComm) -> None:
    works = [four[rank].barrier(timeout=0.05 if rank else PATIENCE_S, async_op=True) for rank in range(3)]
    for work in works:
        with pytest.raises(Timeout, match=f"not called by peers {four[3].peer_id.hex()[:8]}"):
            work.wait(PATIENCE_S)
        assert work.done()
    with pytest.raises(Timeout, match="overdue"):
        four[3].barrier()


def test_a_wait_that_times_out_changes_nothing(four: LocalComm) -> None:
    works = [comm.all_reduce(np.ones(1), async_op=True) for comm in four[:3]]
    with pytest.raises(Timeout, match="it goes on"):
        works[0].wait(0.01)
    assert not works[0].done()
    four[3].all_reduce(np.ones(1))
    assert [work.wait(PATIENCE_S).tensor[0] for work in works] == [4.0] * 3


def test_cancel_and_await(four: LocalComm) -> None:
    works = [comm.barrier(async_op=True) for comm in four[:2]]
    assert works[0].cancel()
    for work in works:
        with pytest.raises(Cancelled, match="cancelled by peer"):
            work.wait(PATIENCE_S)
    works = [comm.all_gather(np.ones(1), tag="x", async_op=True) for comm in four]

    async def all_of_them() -> list[Any]:
        return [await work for work in works]

    assert [result.world_size for result in asyncio.run(all_of_them())] == [4] * 4


# -- loss ------------------------------------------------------------------------------------------------------------


def test_an_op_goes_on_without_who_dies_even_after_its_call(four: LocalComm) -> None:
    data = [np.full(3, float(1 << rank)) for rank in range(4)]
    lost = four[3].all_reduce(data[3], async_op=True)
    works = [four[rank].all_reduce(data[rank], async_op=True) for rank in (0, 1)]
    four[3].die()
    with pytest.raises(Closed):
        lost.wait(PATIENCE_S)
    assert not works[0].done() and data[3][0] == 8.0
    last = four[2].all_reduce(data[2])
    for result in (*(work.wait(PATIENCE_S) for work in works), last):
        assert result.tensor.tolist() == [7.0] * 3 and result.retries == 1
        assert result.peers == tuple(comm.peer_id for comm in four[:3]) and result.epoch == four[0].epoch == 2
    with pytest.raises(Closed):
        four[3].all_reduce(data[3])


def test_the_last_survivor_has_its_own_values(four: LocalComm) -> None:
    work = four[1].all_reduce(values(1, 300), op="avg", codec="e3m0", async_op=True)
    for rank in (0, 2, 3):
        four[rank].leave()
    result = work.wait(PATIENCE_S)
    assert result.tensor.tobytes() == values(1, 300).tobytes()
    assert (result.world_size, result.retries, result.bytes_sent) == (1, 3, 0)


def test_raise_ends_the_op_on_all_and_for_who_calls_it_later(four: LocalComm) -> None:
    works = [comm.all_reduce(np.ones(1), on_peer_loss="raise", async_op=True) for comm in four[:2]]
    four[3].die()
    for work in works:
        with pytest.raises(PeerLost, match="died") as caught:
            work.wait(PATIENCE_S)
        assert caught.value.peer == four[3].peer_id
    with pytest.raises(PeerLost, match="died"):
        four[2].all_reduce(np.ones(1))
    assert [work.wait(PATIENCE_S).world_size for work in [c.barrier(async_op=True) for c in four[:3]]] == [3] * 3


def test_what_needs_the_dead_raises_peer_lost(four: LocalComm) -> None:
    dead = four[3].peer_id
    works = [
        four[0].broadcast(np.zeros(2), root=3, async_op=True),
        four[1].send(np.zeros(2), 3, async_op=True),
        four[2].recv(np.zeros(2), 3, async_op=True),
    ]
    sent = four[0].send(np.ones(2), 1, tag="t", async_op=True)
    four[3].die()
    for work in works:
        with pytest.raises(PeerLost):
            work.wait(PATIENCE_S)
    for call in (four[0].broadcast, four[1].send, four[2].recv):
        with pytest.raises(PeerLost):
            call(np.zeros(2), dead)
    assert four[1].recv(np.zeros(2), four[0].peer_id, tag="t").tensor.tolist() == [1.0, 1.0]
    assert sent.wait(PATIENCE_S).peers == (four[0].peer_id, four[1].peer_id)


# -- growth ----------------------------------------------------------------------------------------------------------


def wait_for(comms: LocalComm, ready: Callable[[], bool]) -> None:
    hub = comms._hub
    with hub.lock:
        assert hub.changed.wait_for(ready, PATIENCE_S)


def test_a_newcomer_enters_at_the_next_boundary_of_all(four: LocalComm) -> None:
    four[0].advance()
    old = four[1].all_reduce(np.ones(1), tag="old", async_op=True)  # at boundary 0
    joining = Aside(four.join)
    wait_for(four, lambda: len(four) == 5)
    assert four[0].world_size == 4 and four[0].epoch == 1
    view = four[0].advance()
    assert view.epoch == four[0].epoch == 2 and four[0].world_size == 5 and four[0].boundary == 2
    new = four[0].all_reduce(np.ones(1), async_op=True)
    for comm in four[2:4]:
        comm.all_reduce(np.ones(1), tag="old", async_op=True)
        comm.advance()
        comm.advance()
    assert joining.waits and not new.done() and four[1].world_size == 4
    four[1].advance()
    assert joining.waits
    four[1].advance()
    comm = joining()
    assert (comm.boundary, comm.entered, comm.rank, comm.world_size) == (2, 2, 4, 5)
    works = [peer.all_reduce(np.ones(1), async_op=True) for peer in (*four[1:4], comm)]
    assert [work.wait(PATIENCE_S).world_size for work in (new, *works)] == [5] * 5
    assert not old.done()  # the first has passed its boundary without a call
    four[0].die()
    assert old.wait(PATIENCE_S).world_size == 3


def test_a_newcomer_that_is_not_let_in_in_time_is_no_member(four: LocalComm) -> None:
    with pytest.raises(Timeout, match="not at boundary 1"):
        four.join(timeout=0.02)
    assert four.run(lambda comm: (comm.advance(), comm.world_size)[1]) == [4] * 4 and four[4].closed


def test_who_is_left_of_the_others_lets_the_newcomer_in(four: LocalComm) -> None:
    joining = Aside(four.join)
    wait_for(four, lambda: len(four) == 5)
    for comm in four[:3]:
        comm.advance()
    assert joining.waits
    four[3].die()
    assert joining().boundary == 1
    for comm in four[:4]:
        comm.close()
    five = four[4]
    assert five.world_size == 1 and five.all_reduce(np.ones(1)).world_size == 1
    five.close()
    again = four.join(timeout=PATIENCE_S)
    assert again.world_size == 1 and again.boundary == 0


# -- state -----------------------------------------------------------------------------------------------------------


def test_the_majority_wins_and_the_report_says_what_moved(four: LocalComm) -> None:
    four.run(lambda comm: comm.advance())

    def body(comm: LocalCommunicator) -> Any:
        entries = {"w": torch.full((100_000,), float(comm.rank == 2)), "step": 5, "same": torch.ones(3)}
        return comm.sync_state(entries), entries

    for comm, (report, entries) in zip(four, four.run(body), strict=True):
        assert not entries["w"].any() and report.source == four[0].peer_id
        assert [(d.peer, d.entry) for d in report.differences] == [(four[2].peer_id, "w")]
        assert report.received_bytes == (400_000 if comm is four[2] else 0)
        assert report.sent_bytes == (400_000 if comm is four[0] else 0)
        assert report.entries_received == (("w",) if comm is four[2] else ())


def test_a_newcomer_receives_though_it_has_company(four: LocalComm) -> None:
    joining = [Aside(four.join) for _ in range(4)]
    wait_for(four, lambda: len(four) == 8)
    four.run(lambda comm: comm.advance() if comm.entered == 0 else None)
    assert all(comm().entered == 1 for comm in joining)

    def body(comm: LocalCommunicator) -> Any:
        new = comm.entered == comm.boundary
        entries = {"theta": np.full(10, -1.0 if new else 3.0), "round": 0 if new else 9, "own": np.ones(1) * comm.rank}
        comm.sync_state(entries, "majority", ["own"])
        return entries["theta"].tolist(), entries["round"], new or entries["own"][0] == comm.rank

    assert four.run(body) == [([3.0] * 10, 9, True)] * 8


def test_state_survives_a_death_in_the_middle(four: LocalComm) -> None:
    """The holder that was chosen first dies when it is asked; another content is chosen by who is left."""
    four.run(lambda comm: comm.advance())

    def dies(*_: Any) -> None:
        four[0].die()

    four[0].depot.show = dies  # type: ignore[method-assign]

    def body(comm: LocalCommunicator) -> Any:
        entries = {"w": np.full(1000, 1.0 if comm is four[0] else 2.0)}
        report = comm.sync_state(entries, "send" if comm is four[0] else "majority")
        return entries["w"][0], report.rounds

    assert four.run(body) == [None, (2.0, 2), (2.0, 2), (2.0, 2)]
    with pytest.raises(MismatchError, match=r"'b' is float64\[2\] at rank 0, missing at rank 1, 2"):
        four.run(lambda comm: comm.sync_state({"a": 1} | ({"b": np.ones(2)} if comm.rank == 0 else {})))
