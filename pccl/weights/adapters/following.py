"""following.py - a receiver from plain settings, for engines that only hand strings to their workers, and the update
that is ready for them: prepared while the engine serves, the newest there is.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import pccl
from pccl.errors import Closed, PcclError, Timeout
from pccl.weights import base as bases
from pccl.weights.adapters.engine import Adapter, Apply, EngineError
from pccl.weights.receiver import Receiver
from pccl.weights.shadow import FileShadow, MemoryShadow, Shadow
from pccl.weights.update import Update

__all__ = ["Ahead", "Following", "Settings"]


@dataclass
class Settings:
    """`coordinator`, `secret`, `listen`: as of pccl.connect. `base`: the directory of safetensors that is version 0.
    `shadow`: a file that survives the worker, one for each; "" for memory. `source`: the id of who serves, in hex; ""
    for whoever does. `pubkey`: the publisher's, in hex; "" looks at no signatures. `name`: of the set of weights.
    """

    coordinator: str
    secret: str
    base: str
    shadow: str = ""
    source: str = ""
    pubkey: str = ""
    name: str = "weights"
    listen: str = "0.0.0.0:0"
    timeout_s: float = 60.0


class Following:
    """A communicator, a shadow and a receiver. Blocks until all three are there; raises as they do."""

    def __init__(self, settings: Settings) -> None:
        schema = bases.schema_of(settings.base)
        self.shadow: Shadow = FileShadow(settings.shadow, schema) if settings.shadow else MemoryShadow(schema)
        if self.shadow.at is None:
            bases.load(settings.base, self.shadow)
        self.comm = pccl.connect(
            settings.coordinator,
            secret=settings.secret,
            listen=settings.listen,
            timeout=settings.timeout_s,
            enter=False,
        )
        try:
            self.receiver = Receiver(
                self.comm,
                self.shadow,
                upstream=[bytes.fromhex(settings.source)] if settings.source else None,
                pubkey=bytes.fromhex(settings.pubkey) if settings.pubkey else None,
                name=settings.name,
            )
        except BaseException:
            self.comm.close()
            raise

    def close(self) -> None:
        """The shadow's file stays."""
        self.receiver.close()
        self.comm.close()
        self.shadow.close()


class Ahead:
    """Prepares updates in a thread of its own, each in the place of the one before, until one is taken."""

    def __init__(self, receiver: Receiver, adapter: Adapter) -> None:
        self._receiver, self._adapter = receiver, adapter
        self._changed = threading.Condition()
        self._ready: tuple[Update, Apply] | None = None
        self._error: PcclError | None = None
        self._thread = threading.Thread(target=self._work, name="pccl-weights-ahead", daemon=True)
        self._thread.start()

    def take(self, version: int | None, timeout_s: float) -> tuple[Update, Apply]:
        """The update to that version, prepared; None: to the newest. Blocks until it is there, then raises Timeout; or
        what ended the receiving, or EngineError of the preparing; or EngineError if only a newer version is to be had.
        """
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._ready is None or (version is not None and self._ready[0].version < version):
                if self._error is not None:
                    raise self._error
                left = until - time.monotonic()
                if left <= 0:
                    raise Timeout(
                        f"version {'any' if version is None else version} did not come within {timeout_s:g} s"
                    )
                self._changed.wait(left)
            if version is not None and self._ready[0].version > version:
                raise EngineError(f"version {version} is gone: {self._ready[0].version} is here already")
            return self._ready

    def done(self, update: Update) -> None:
        """It has been committed."""
        with self._changed:
            if self._ready is not None and self._ready[0] is update:
                self._ready = None

    def join(self) -> None:
        """Ends, once the receiver is closed."""
        self._thread.join()

    def _work(self) -> None:
        try:
            for update in self._receiver.updates():
                apply = self._adapter.prepare(update)
                with self._changed:
                    self._ready = (update, apply)
                    self._changed.notify_all()
            error: PcclError = Closed("the receiver is closed")
        except PcclError as raised:
            error = raised
        with self._changed:
            self._error = error
            self._changed.notify_all()
