"""files.py - files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pccl.weights.errors import LogError

__all__ = ["TEMPORARY", "mapped", "publish", "remove", "sync_directory", "write_whole"]

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
