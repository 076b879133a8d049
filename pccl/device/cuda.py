"""cuda.py - torch.cuda as staging sees it (streams.py): two side streams of a GPU, events that threads sleep on.

No call here waits for the device. Events are made with `blocking`, so that who waits for one sleeps and does not spin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["Cuda"]


class Cuda:
    """A GPU; see Device."""

    def __init__(self, index: int) -> None:
        self._device = torch.device("cuda", index)
        stream: Any = torch.cuda.Stream
        self._streams = {way: stream(self._device) for way in ("out", "back")}

    def pinned(self, nbytes: int) -> torch.Tensor:
        """See Device."""
        with torch.cuda.device(self._device):
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Any:
        """See Device."""
        return self._recorded(torch.cuda.current_stream(self._device))

    def fence(self, event: Any) -> None:
        """See Device."""
        torch.cuda.current_stream(self._device).wait_event(event)

    def copy(self, way: str, copies: Iterable[tuple[torch.Tensor, torch.Tensor]], after: Any | None) -> Any:
        """See Device."""
        stream = self._streams[way]
        with torch.no_grad(), torch.cuda.stream(stream):
            if after is not None:
                stream.wait_event(after)
            for to, source in copies:
                to.copy_(source, non_blocking=True)
                for tensor in (to, source):
                    if tensor.is_cuda:
                        tensor.record_stream(stream)
            return self._recorded(stream)

    def aside(self) -> Any:
        """See Device."""
        return torch.cuda.stream(self._streams["back"])

    def _recorded(self, stream: Any) -> Any:
        make: Any = torch.cuda.Event
        event = make(blocking=True)
        event.record(stream)
        return event
