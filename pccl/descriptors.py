"""descriptors.py - whether this process may open as many files as something needs, found out before it begins.

libzmq ends the process if it runs out of them while it starts.
"""

from __future__ import annotations

import errno
import os

from pccl.errors import ResourceError

__all__ = ["COORDINATOR", "PEER", "make_sure"]

#: What `connect` and a coordinator's start open before they serve; connections come on top.
PEER = 32
COORDINATOR = 48


def make_sure(count: int, who: str) -> None:
    """ResourceError unless so many descriptors are free at this moment."""
    held: list[int] = []
    try:
        while len(held) < count:
            held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        left = f"this process may open {len(held)} more: see ulimit -n"
        raise ResourceError(f"{who} needs {count} file descriptors to begin, and {left}") from None
    finally:
        for descriptor in held:
            os.close(descriptor)
