"""Kills the process groups of a launcher that ended without doing it.

Run as ``python -I -S _guard.py`` with a pipe as standard input, whose other end only the launcher holds for long: lines
``+PGID`` and ``-PGID`` say which groups live. When the pipe ends, whatever is still listed dies. On an orderly end the
list is empty by then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def main() -> None:
    """Follows the pipe to its end, then kills what is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
