"""errors.py - what can go wrong with KV caches, as types."""

from __future__ import annotations

from typing import Any

from pccl.errors import PcclError

__all__ = ["LayoutMismatch"]


class LayoutMismatch(PcclError):
    """Two layouts cannot be brought together exactly; `field` names what differs, `ours` and `theirs` what it is on
    each side. Nothing has been sent or reserved.
    """

    def __init__(self, field: str, ours: Any, theirs: Any, **facts: Any) -> None:
        super().__init__(f"the layouts differ in {field}: {ours!r} here, {theirs!r} there", **facts)
        self.field = field
        self.ours = ours
        self.theirs = theirs

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.field, self.ours, self.theirs, self.peer, self.epoch, self.op))


def _rebuild(field: str, ours: Any, theirs: Any, peer: bytes | None, epoch: int | None, op: str | None) -> PcclError:
    return LayoutMismatch(field, ours, theirs, peer=peer, epoch=epoch, op=op)
