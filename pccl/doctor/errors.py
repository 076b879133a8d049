"""errors.py - what ends an examination, beside pccl's own Timeout, AuthError, ProtocolError and ArgumentError."""

from __future__ import annotations

from pccl.errors import PcclError

__all__ = ["Busy", "GaveUp", "Gone", "Unreachable"]


class Unreachable(PcclError):
    """No connection to the address: nobody listens there, no way to it, or no such host."""


class Busy(PcclError):
    """The listener is examining somebody else."""


class Gone(PcclError):
    """The other side ended the connection."""


class GaveUp(PcclError):
    """The listener could not do what was asked; the text is its own."""
