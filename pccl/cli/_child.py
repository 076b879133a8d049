"""First code of a launched peer: ties its life to the launcher's, then becomes the user's program.

Run as ``python -I -S _child.py LAUNCHER_PID GUARD_FD PROGRAM ARGS...``. Imports nothing of pccl. When the launcher is
killed, the kernel kills the program (parent-death signal, kept across exec), and the guard, told here of the process
group before any user code runs, kills what the program started itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Never returns: becomes the program, or exits."""
    launcher, guard, program = int(argv[1]), int(argv[2]), argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != launcher:
        sys.exit(1)  # the launcher died before the line above
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored
    os.write(guard, b"+%d\n" % os.getpid())
    os.close(guard)
    os.execv(program[0], program)


if __name__ == "__main__":
    main(sys.argv)
