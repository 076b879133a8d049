"""errors.py - what can go wrong with weights, as types. Nothing is ever committed together with one of these."""

from __future__ import annotations

from pccl.errors import PcclError

__all__ = ["DamageError", "LineageError", "LogError", "SchemaError", "WeightsError"]


class WeightsError(PcclError):
    """Base of all. Shadow, version and log hold what they held before."""


class SchemaError(WeightsError):
    """Tensors, or what a source serves, are not of this schema; the text names the first that differs."""


class DamageError(WeightsError):
    """Bytes are not what their digest, root or signature says; the text names file, chunk or tensors."""


class LineageError(WeightsError):
    """No way leads from the version that is here to what the source has: another run, or pruned. Begin at the base."""


class LogError(WeightsError):
    """A log cannot be read or written; the text names the file. What was durable before still is."""
