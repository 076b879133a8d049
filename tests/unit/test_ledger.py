"""The ledger: nothing is said that is not written, and nothing is lost while it cannot be; and the file below it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.group_table import A, B, C, V, join, of

from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.events import Effect, Record, Send
from pccl.coordinator.ledger import RETRY_S, Ledger
from pccl.coordinator.run import Run
from pccl.coordinator.settings import Settings
from pccl.coordinator.store import Saved, SqliteStore
from pccl.errors import StateError


class Desk:
    """A ledger over a real file, and a clock."""

    def __init__(self, path: Path, run: str = "run", **options: object) -> None:
        self.store = SqliteStore(path)
        self.run = Run(run, Settings(**{"lease_s": 10.0, **options}), 100.0)  # type: ignore[arg-type]
        self.ledger = Ledger(self.run, self.store)
        self.now = 100.0
        self.said(self.ledger.open(lambda: self.now))

    def said(self, effects: list[Effect]) -> list[tuple[bytes, m.ToPeer]]:
        self.remarks = [effect.reason for effect in effects if isinstance(effect, Record) and effect.what == "state"]
        return [(effect.peer, effect.message) for effect in effects if isinstance(effect, Send)]

    def say(self, peer: bytes, message: m.ToCoordinator) -> list[tuple[bytes, m.ToPeer]]:
        self.now += 0.001
        return self.said(self.ledger.bytes_from(self.now, peer, m.encode(message)))

    def tick(self, seconds: float) -> list[tuple[bytes, m.ToPeer]]:
        self.now += seconds
        return self.said(self.ledger.tick(self.now))

    def beat(self, peer: bytes) -> list[tuple[bytes, m.ToPeer]]:
        return self.say(peer, m.Heartbeat(V, 0, self.run.groups[0].epoch, 0, 0, 0))

    @property
    def changes(self) -> int:
        assert self.store._db is not None
        return self.store._db.total_changes

    def fill(self) -> None:
        """The disk has room for no further page."""
        assert self.store._db is not None
        (pages,) = self.store._db.execute("PRAGMA page_count").fetchone()
        self.store._db.execute(f"PRAGMA max_page_count = {pages}")

    def make_room(self) -> None:
        assert self.store._db is not None
        self.store._db.execute("PRAGMA max_page_count = 1000000")

    def members(self) -> set[bytes]:
        return set(self.run.groups[0].members)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run.state"


@pytest.fixture
def desk(path: Path) -> Iterator[Desk]:
    desk = Desk(path, min_peers=2)
    yield desk
    desk.store.close()


def formed(desk: Desk) -> Desk:
    desk.say(A, join(A))
    assert set(of(m.Epoch, desk.say(B, join(B)))) == {A, B}
    return desk


LONG = "x" * 250


def long_join(peer: bytes) -> m.Join:
    """One that takes more than what is left of a page."""
    return m.Join(V, "run", 0, peer, ("10.0.0.3:1",), LONG, 1, 1)


def test_another_process_goes_on(path: Path) -> None:
    first = formed(Desk(path, min_peers=2))
    first.store.close()
    second = Desk(path, min_peers=2)
    assert (first.run.incarnation, second.run.incarnation) == (1, 2)
    assert second.members() == {A, B}
    assert [type(message) for _, message in second.beat(A)] == [m.Ack]
    second.say(C, join(C))
    assert not of(m.Evicted, second.say(A, m.Held(V, 1, 1)))
    status = second.run.status(second.now)
    assert (status.incarnation, status.state, status.trouble) == (2, str(path), "")
    second.store.close()


def test_heartbeats_cost_no_write(desk: Desk) -> None:
    formed(desk)
    before = desk.changes
    for _ in range(100):
        desk.beat(A)
        desk.beat(B)
        desk.tick(0.1)
    assert desk.changes == before


def test_what_is_said_is_in_the_file(desk: Desk) -> None:
    """At the moment the messages leave, another reader of the bytes would know them."""
    formed(desk)
    assert desk.store._db is not None
    for act in (lambda: desk.say(C, join(C)), lambda: desk.say(A, m.Leave(V, "")), lambda: desk.say(B, _frozen(1))):
        assert act()
        (data,) = desk.store._db.execute("SELECT state FROM groups").fetchone()
        assert snapshot.decode(data, "") == desk.run.groups[0].export()


def _frozen(change: int) -> m.Frozen:
    return m.Frozen(V, change, 0, {0: {}}, ())


def test_a_full_disk_decides_nothing_until_there_is_room(desk: Desk) -> None:
    formed(desk)
    desk.fill()
    desk.run.groups[0]._gone.update((bytes([9, n]) * 8, LONG) for n in range(64))  # a history that asks for pages
    assert not desk.say(A, m.Leave(V, "")), "Goodbye is a promise"
    assert desk.remarks and "full" in desk.remarks[0] and str(desk.store.where) in desk.remarks[0]
    assert "full" in desk.run.status(desk.now).trouble
    assert [type(message) for _, message in desk.beat(B)] == [m.Ack], "it lives, and that is no decision"
    assert not desk.say(A, m.Leave(V, "")) and not desk.say(C, join(C))
    assert not desk.tick(RETRY_S) and not desk.remarks, "it is said once"
    desk.now += 60.0
    desk.beat(B)
    assert not desk.tick(RETRY_S)
    desk.make_room()
    sent = desk.tick(RETRY_S)
    assert set(of(m.Goodbye, sent)) == {A} and set(of(m.Freeze, sent)) == {B} and set(of(m.Welcome, sent)) == {C}
    assert desk.remarks == ["written again"]
    assert desk.members() == {B}, "who was heard meanwhile has not lost its lease"
    assert desk.run.status(desk.now).trouble == ""


def test_what_was_held_back_is_as_if_it_never_was_for_the_next_process(path: Path) -> None:
    first = formed(Desk(path, min_peers=2))
    first.fill()
    first.run.groups[0]._gone.update((bytes([9, n]) * 8, LONG) for n in range(64))
    assert not first.say(A, m.Leave(V, ""))
    first.store.close()
    second = Desk(path, min_peers=2)
    assert second.members() == {A, B}
    assert set(of(m.Goodbye, second.say(A, m.Leave(V, "")))) == {A}
    second.store.close()


def test_strangers_while_nothing_can_be_written(desk: Desk) -> None:
    formed(desk)
    desk.fill()
    desk.run.groups[0]._gone.update((bytes([9, n]) * 8, LONG) for n in range(64))
    desk.say(A, m.Leave(V, ""))
    assert not desk.beat(C)
    malformed = desk.run.malformed
    assert not desk.ledger.bytes_from(desk.now, C, b"\xc1") and desk.run.malformed == malformed + 1
    assert of(m.Status, desk.say(C, m.StatusRequest(V, "run")))


# -- the file -----------------------------------------------------------------------------------------------------


def test_a_file_is_held_by_one_process(desk: Desk, path: Path) -> None:
    with pytest.raises(StateError, match=r"run\.state is in use by another coordinator"):
        SqliteStore(path).begin("run")


def test_the_state_of_another_run(path: Path) -> None:
    Desk(path).store.close()
    with pytest.raises(StateError, match=r"run\.state is the state of run 'run', not of 'other'"):
        Desk(path, run="other")


def test_no_state_at_all(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(StateError, match=r"run\.state is no state of a coordinator"):
        Desk(path)
    assert path.read_bytes().startswith(b"something else"), "it is somebody's"
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(StateError, match=r"other\.db is the database of another program"):
        Desk(other)
    with pytest.raises(StateError, match=r"nowhere/x: unable to open"):
        Desk(tmp_path / "nowhere" / "x")


def test_a_newer_format(path: Path) -> None:
    Desk(path).store.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match=r"run\.state was written by a newer pccl: format 99, this one reads up to 1"):
        Desk(path)


def test_a_damaged_group(path: Path) -> None:
    formed(Desk(path, min_peers=2)).store.close()
    with sqlite3.connect(path) as db:
        (data,) = db.execute("SELECT state FROM groups").fetchone()
        db.execute("UPDATE groups SET state = ?", (data[:-3] + b"abc",))
    db.close()
    with pytest.raises(StateError, match=r"run\.state is damaged: a group's checksum"):
        Desk(path)


def test_damaged_pages(path: Path) -> None:
    formed(Desk(path, min_peers=2)).store.close()
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StateError, match=r"run\.state is .*damaged"):
        Desk(path)


def test_a_later_incarnation_fences_this_one(desk: Desk) -> None:
    """As on a shared file system whose locks are no locks."""
    assert desk.store._db is not None
    desk.store._db.execute("UPDATE run SET incarnation = 7")
    desk.say(A, join(A))
    assert not of(m.Epoch, desk.say(B, join(B)))
    assert desk.remarks and "belongs to a later incarnation than 1" in desk.remarks[0]


def test_who_waited_for_its_turn_gives_leases_from_then_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "state", min_peers=1)
    desk.say(A, join(A))
    assert desk.run.groups[0].members
    desk.store.close()

    class Patient(SqliteStore):
        """Another coordinator leads for an hour."""

        def begin(self, run: str) -> Saved:
            nonlocal now
            now += 3600.0
            return super().begin(run)

    now = desk.now
    run = Run("run", Settings(lease_s=10.0), now)
    heirs = Ledger(run, Patient(tmp_path / "state"))
    heirs.open(lambda: now)
    now += 4.0
    heirs.tick(now)
    assert "stall" not in [entry.what for entry in heirs.status(now).groups[0].log] and run.groups[0].members
    heirs.store.close()  # type: ignore[union-attr]
