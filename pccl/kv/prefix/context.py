"""context.py - what a block's hash means nothing without: whose it is, of which model, hashed how.

Two engines share prefixes only if all of this is equal: the same tokens under another salt, LoRA or layout are another
KV cache. The index keeps them apart; layouts are compared when blocks are to move, where the refusal names the field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pccl.errors import ArgumentError

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
