"""Weights that change a little in every step, sent as what changed: lossless, bit for bit."""

from __future__ import annotations

from pccl.weights.codec import Codec, DeltaError, WrongBaseError

__all__ = ["Codec", "DeltaError", "WrongBaseError"]
