"""files.py - files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pccl.weights.errors import LogError

__all__ = ["TEMPORARY", "Growing", "mapped", "publish", "remove", "sync_directory", "write_whole"]

TEMPORARY = ".tmp"


def write_whole(path: Path, parts: Iterable[Any], durable: bool = True) -> None:
    """The file has these bytes, also after a power cut, or what it had before. LogError (a full disk) otherwise."""
    stage(path, parts, durable)
    publish(path, durable)


def stage(path: Path, parts: Iterable[Any], durable: bool = True) -> None:
    """Writes the bytes beside the file, to be its content when `publish` says so."""
    beside = path.with_name(path.name + TEMPORARY)
    try:
        with open(beside, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            if durable:
                os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise LogError(f"{path} cannot be written: {error}") from error


class Growing:
    """A file that is written while its bytes come to be, and has its name when `publish` returns. A thread writes and
    syncs what is added: nobody waits for the disk but at the end, when little is left. LogError as of write_whole.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(path.name + TEMPORARY)
        self._added: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._synced = False
        try:
            self._file = open(self._beside, "wb", buffering=0)  # noqa: SIM115 - open for longer than a call
        except OSError as error:
            raise self._failed(error) from error
        self._thread = threading.Thread(target=self._work, name="pccl-weights-disk", daemon=True)
        self._thread.start()

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        """What was not published is gone."""
        self._stop()
        with contextlib.suppress(OSError):
            self._file.close()
        remove(self._beside)

    def add(self, data: bytes) -> None:
        """More of it. Does not block; what goes wrong is said by `publish`."""
        self._added.put(data)

    def publish(self) -> None:
        """That was all: it is durable, and has its name."""
        self._stop()
        try:
            if self._error is not None:
                raise self._error
            if not self._synced:
                os.fdatasync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        publish(self._path)

    def _stop(self) -> None:
        self._added.put(None)
        self._thread.join()

    def _work(self) -> None:
        """What an early call finds wrong, the last one is not told again: it is kept."""
        try:
            while (data := self._added.get()) is not None:
                self._synced = False
                self._write(data)
                if self._added.empty():
                    os.fdatasync(self._file.fileno())
                    self._synced = True
        except OSError as error:
            self._error = error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _failed(self, error: OSError) -> LogError:
        return LogError(f"{self._path} cannot be written: {error}")


def publish(path: Path, durable: bool = True) -> None:
    """What was staged is the file."""
    try:
        os.replace(path.with_name(path.name + TEMPORARY), path)
        if durable:
            sync_directory(path.parent)
    except OSError as error:
        raise LogError(f"{path} cannot be written: {error}") from error


def sync_directory(path: Path) -> None:
    """Names in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mapped(path: Path) -> memoryview:
    """The bytes of a file, read-only, by way of the page cache; valid also when it is removed meanwhile."""
    try:
        with open(path, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise LogError(f"{path} cannot be read: {error}") from error


def remove(path: Path) -> None:
    """If it is there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
