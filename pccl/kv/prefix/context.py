"""context.py - what a block's hash means nothing without: whose it is, of which model, hashed how.

Two engines share prefixes only if all of this is equal: the same tokens under another salt, LoRA or layout are another
KV cache. Contexts are compared at the handshake, where the refusal names the field; the index then keeps them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pccl.errors import ArgumentError, MismatchError

__all__ = ["KeyContext"]


@dataclass(frozen=True, slots=True)
class KeyContext:
    """`fingerprint`: of the KV cache's layout, in hex. `hash_scheme`: how block hashes are made, with its seed."""

    model: str
    fingerprint: str
    hash_scheme: str
    tenant: str = ""
    lora: str = ""
    salt: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise ArgumentError(f"{field.name} must be a string, not {getattr(self, field.name)!r}")
        for name in ("model", "fingerprint", "hash_scheme"):
            if not getattr(self, name):
                raise ArgumentError(f"{name} is empty")

    def check_same(self, theirs: KeyContext) -> None:
        """MismatchError naming the first field in which the other side differs. A salt is not shown."""
        for field in fields(self):
            ours, other = getattr(self, field.name), getattr(theirs, field.name)
            if ours != other:
                shown = "" if field.name == "salt" else f": {ours!r} here, {other!r} there"
                raise MismatchError(f"prefixes cannot be shared, {field.name} differs{shown}")
