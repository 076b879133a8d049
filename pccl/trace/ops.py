"""ops.py - how an op, and a wait for one, become records. Called by the runtime, if there is a trace."""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from pccl import _native
from pccl.trace.recorder import Recorder
from pccl.trace.records import End, Submit, Wait
from pccl.types import Algorithm, Event, Status

if TYPE_CHECKING:
    from pccl.runtime import Op

__all__ = ["ended", "submitted", "waited"]


def submitted(recorder: Recorder, op: Op) -> None:
    """A thread is about to hand the op to the engine."""
    request = op.request
    nbytes = max((buffer.nbytes for buffer in op.buffers), default=0)
    recorder.put(Submit(time.monotonic_ns(), request.token, request.name, _what(op), _row(op), nbytes, _thread()))


def ended(recorder: Recorder, op: Op, event: Event) -> None:
    """The engine has let go of the op, or has refused it."""
    recorder.put(
        End(
            time.monotonic_ns(),
            op.request.token,
            op.request.name,
            _what(op),
            _row(op),
            Status(event.status).name.lower(),
            event.epoch,
            event.retries,
            event.sent_bytes,
            event.received_bytes,
            event.member_count,
            _algorithm(event.desc),
            event.duration_ns,
        )
    )


def waited(recorder: Recorder, what: str, token: int, begin_ns: int, end_ns: int) -> None:
    """The calling thread was blocked so long."""
    recorder.put(Wait(begin_ns, end_ns, what, token, _thread()))


def _what(op: Op) -> str:
    shape = f" {op.buffers[0].dtype_name}{list(op.buffers[0].shape)}" if op.buffers else ""
    return f"{op.label}{shape}"


def _row(op: Op) -> str:
    """Ops of one row are of one lane, but for transfers and the further parts of lists, which have too many."""
    if op.pair:
        return "send, recv"
    if op.tag is not None:
        return f"tag {op.tag!r}"
    return "ops" if op.request.name.lane == 0 else "lists"


def _thread() -> str:
    thread = threading.current_thread()
    return f"{thread.name} ({thread.native_id})"


@lru_cache(maxsize=1024)
def _algorithm(desc: int) -> str:
    read = _native.read_desc(desc)
    return "" if read is None or not read.is_all_reduce else Algorithm(read.algorithm).name.lower()
