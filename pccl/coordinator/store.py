"""store.py - where a run's state outlives its coordinator: one SQLite file, held by one process.

Decides nothing. `begin` reads everything and writes the next incarnation; `save` writes groups, all or none, and has
returned only when they are on the disk (WAL, synchronous=FULL). Whatever goes wrong is a StateError that names the
file. A save that failed may be tried again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pccl.coordinator import snapshot
from pccl.errors import StateError

#: "pccl", for whoever finds the file.
APPLICATION_ID = 0x7063636C
TABLES = """
    CREATE TABLE run (name TEXT NOT NULL, incarnation INTEGER NOT NULL);
    CREATE TABLE groups (number INTEGER PRIMARY KEY, state BLOB NOT NULL);
"""

R = TypeVar("R")


@dataclass(slots=True, frozen=True)
class Saved:
    """What there was, and the number of the process that takes it up."""

    incarnation: int
    groups: tuple[snapshot.GroupState, ...]


class Store(Protocol):
    """What the ledger wants of a place."""

    where: str

    def begin(self, run: str) -> Saved:
        """Takes the state of a run for this process alone."""

    def save(self, groups: Mapping[int, bytes]) -> None:
        """Writes groups, all or none; on the disk when it returns. StateError: nothing was written."""

    def close(self) -> None:
        """Lets go."""


class SqliteStore:
    """A Store in one file."""

    def __init__(self, path: str | Path) -> None:
        self.where = str(path)
        self._incarnation = 0
        self._db: sqlite3.Connection | None = None

    def begin(self, run: str) -> Saved:
        """As Store says; the file is made if there is none."""
        try:
            return self._guarded(lambda: self._begin(run))
        except StateError:
            self.close()
            raise

    def save(self, groups: Mapping[int, bytes]) -> None:
        """As Store says."""
        self._guarded(lambda: self._save(groups))

    def close(self) -> None:
        """Idempotent."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _guarded(self, act: Callable[[], R]) -> R:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise StateError(f"{self.where} is in use by another coordinator") from None
            raise StateError(f"{self.where}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StateError(f"{self.where} is no state of a coordinator, or it is damaged: {error}") from None
        finally:
            if self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _begin(self, run: str) -> Saved:
        self._db = db = sqlite3.connect(self.where, timeout=0, isolation_level=None, check_same_thread=False)
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}")
        db.execute("BEGIN EXCLUSIVE")
        self._check(db)
        if not _number(db, "application_id"):
            self._make(db, run)
        (name, before), *_ = db.execute("SELECT name, incarnation FROM run").fetchall() or [("", 0)]
        if name != run:
            raise StateError(f"{self.where} is the state of run {name!r}, not of {run!r}")
        rows = db.execute("SELECT state FROM groups ORDER BY number").fetchall()
        groups = tuple(snapshot.decode(state, self.where) for (state,) in rows)
        self._incarnation = before + 1
        db.execute("UPDATE run SET incarnation = ?", (self._incarnation,))
        db.execute("COMMIT")
        return Saved(self._incarnation, groups)

    def _check(self, db: sqlite3.Connection) -> None:
        """Is it ours, and can it be read?"""
        owner, tables = _number(db, "application_id"), db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if owner not in (0, APPLICATION_ID) or (not owner and tables):
            raise StateError(f"{self.where} is the database of another program")
        if (version := _number(db, "user_version")) > snapshot.FORMAT:
            raise snapshot.newer(self.where, version)
        (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise StateError(f"{self.where} is damaged: {said}")

    def _make(self, db: sqlite3.Connection, run: str) -> None:
        for statement in TABLES.split(";"):
            db.execute(statement)
        db.execute("INSERT INTO run VALUES (?, 0)", (run,))
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {snapshot.FORMAT}")

    def _save(self, groups: Mapping[int, bytes]) -> None:
        db = self._db
        if db is None:
            raise StateError(f"{self.where} is closed")
        db.execute("BEGIN IMMEDIATE")
        if not db.execute("UPDATE run SET incarnation = ? WHERE incarnation = ?", (self._incarnation,) * 2).rowcount:
            raise StateError(f"{self.where} belongs to a later incarnation than {self._incarnation}")
        db.executemany("INSERT OR REPLACE INTO groups VALUES (?, ?)", groups.items())
        db.execute("COMMIT")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])
