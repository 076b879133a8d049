"""A run's state in a real etcd: who leads, what a leader that was replaced can still write, what outlives it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator

import pytest
from integration.etcd_server import ETCD, MISSING, Etcd, etcd, free_port
from unit.group_table import A, B, group

from pccl.coordinator import snapshot
from pccl.coordinator.etcd import EtcdStore, members_of
from pccl.errors import ArgumentError, StateError

LONG = 30.0
STATE = snapshot.encode(group(A, B).machine.export())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    if ETCD is None:
        pytest.skip(MISSING)
    with etcd(tmp_path_factory.mktemp("etcd")) as made:
        yield made


class Leader:
    """A store, and what became of it."""

    def __init__(self, url: str) -> None:
        self.end, self.lost = threading.Event(), threading.Event()
        self.store = EtcdStore(url, self.end, self.lost.set)


def test_the_next_leader_takes_up_what_the_former_has_written(server: Etcd) -> None:
    first, second = Leader(server.url), Leader(server.url)
    saved = first.store.begin("run")
    assert (saved.incarnation, saved.groups) == (1, ())
    first.store.save({0: STATE})
    found: list[object] = []
    waits = threading.Thread(target=lambda: found.append(second.store.begin("run")), daemon=True)
    waits.start()
    assert not first.lost.wait(3.0) and waits.is_alive(), "the lease is kept alive"
    first.store.close()
    waits.join(LONG)
    assert [(got.incarnation, got.groups) for got in found] == [(2, (snapshot.decode(STATE, ""),))]  # type: ignore[attr-defined]
    assert not first.lost.is_set(), "it has given leadership back itself"
    second.store.close()


def test_a_leader_that_was_replaced_writes_nothing(server: Etcd) -> None:
    stale, fresh = Leader(server.url), Leader(server.url)
    stale.store.begin("fenced")
    stale.store._closed.set()  # it stands still: nobody keeps its lease alive
    assert fresh.store.begin("fenced").incarnation == 2
    fresh.store.save({0: STATE})
    with pytest.raises(StateError, match="another coordinator leads run 'fenced'"):
        stale.store.save({0: b"nonsense"})
    assert stale.lost.is_set() and not fresh.lost.is_set()
    fresh.store.close()
    assert Leader(server.url).store.begin("fenced").groups == (snapshot.decode(STATE, ""),)


def test_who_waits_can_be_told_to_end(server: Etcd) -> None:
    leader, other = Leader(server.url), Leader(server.url)
    leader.store.begin("ended")
    other.end.set()
    with pytest.raises(StateError, match="ended before it led"):
        other.store.begin("ended")
    leader.store.close()


def test_a_newer_format_and_damage_are_named(server: Etcd) -> None:
    first = Leader(server.url)
    first.store.begin("odd")
    first.store.save({0: STATE[:-1]})
    first.store.close()
    with pytest.raises(StateError, match=r"etcd://.*/pccl/odd/ is damaged"):
        Leader(server.url).store.begin("odd")
    value = base64.b64encode(b"99").decode()
    server.client.ask("kv/put", {"key": base64.b64encode(b"pccl/odd/format").decode(), "value": value})
    with pytest.raises(StateError, match="newer pccl: format 99"):
        Leader(server.url).store.begin("odd")


def test_no_etcd_there() -> None:
    alone = Leader(f"etcd://127.0.0.1:{free_port()}")
    alone.end.set()
    with pytest.raises(StateError, match="ended before it led"):
        alone.store.begin("run")


@pytest.mark.parametrize("url", ["", "etcd://", "http://host:1", "etcd://host:0", "etcd://:1", "etcd://a:1,b:x"])
def test_no_place_for_state(url: str) -> None:
    with pytest.raises(ArgumentError):
        members_of(url)


def test_places() -> None:
    assert members_of("etcd://a,b:1,[::1]:2,[::1]") == [("a", 2379), ("b", 1), ("::1", 2), ("::1", 2379)]
