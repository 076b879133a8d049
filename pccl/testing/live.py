"""live.py - faults for a communicator of a real program, where no simulator stands between."""

from __future__ import annotations

from pccl.communicator import Communicator


def kill_stream(comm: Communicator, peer: bytes, index: int = 0) -> None:
    """Resets one stream of the link to a peer (index modulo the number of its streams), as a network might.

    Nothing is lost: what was on its way goes again over the others, and the stream is dialled again. Nothing happens if
    there is no link to that peer. Does not block.
    """
    comm._runtime.check()
    comm._runtime.engine.kill_stream(peer, index)
