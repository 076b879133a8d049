"""Local processes as one fleet: start, prefixed output, signals, ends, and never an orphan.

One thread, driven by ``Fleet.turn``: pipes, process descriptors and signals are all readiness events of one selector,
so nothing is polled. Every process leads a process group of its own; the group is killed before its leader is reaped,
so the number cannot have been given to anybody else.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
READ_BYTES = 1 << 16
COLOURS = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94, 91)

Sink = Callable[[int, bool, bytes], None]  # index, from standard error?, one line with its newline


def prefixed_sink(colour: bool) -> Sink:
    """Writes lines to our own standard output and error, each behind ``[index] ``."""

    def write(index: int, is_error: bool, line: bytes) -> None:
        prefix = f"[{index}] "
        if colour:
            prefix = f"\x1b[{COLOURS[index % len(COLOURS)]}m{prefix}\x1b[0m"
        stream = sys.stderr if is_error else sys.stdout
        stream.buffer.write(prefix.encode() + line)
        stream.buffer.flush()

    return write


class LineReader:
    """Cuts one pipe into lines; a last line without an end gets one."""

    def __init__(self, pipe: IO[bytes], emit: Callable[[bytes], None]) -> None:
        self.pipe = pipe
        self.emit = emit
        self.rest = b""
        os.set_blocking(pipe.fileno(), False)

    def read(self) -> int | None:
        """Takes what is there now and says how much it was: 0 at the end of the pipe, None if nothing is there yet."""
        try:
            data = os.read(self.pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.emit(line + b"\n")
        return len(data)

    def finish(self) -> None:
        """Takes what the ended process left in the pipe, and closes it."""
        while self.read():
            pass
        if self.rest:
            self.emit(self.rest + b"\n")
            self.rest = b""
        self.pipe.close()


@dataclass(slots=True)
class Process:
    """One member of the fleet."""

    index: int
    popen: subprocess.Popen[bytes]
    descriptor: int
    readers: list[LineReader]
    killed_by_us: bool = False
    ended: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def exit_code(self) -> int:
        """As a shell would say it: 128 + number for a process that a signal ended."""
        code = self.popen.returncode
        assert code is not None, "asked for the exit code of a living process"
        return code if code >= 0 else 128 - code

    def signal(self, signum: int) -> None:
        """To its whole group, as a terminal does."""
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)


class Fleet:
    """The processes, and the signals that somebody sends to us (``signals``, in order of arrival)."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.living: list[Process] = []
        self.signals: list[int] = []
        self._selector = selectors.DefaultSelector()
        self._start_guard()

    def _start_guard(self) -> None:
        read_end, self._guard_pipe = os.pipe()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "_guard.py")],
            stdin=read_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(read_end)

    def catch_signals(self, signums: Sequence[int]) -> None:
        """From now on these end up in ``signals`` and end the wait of ``turn``. Main thread only."""
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._wake_write)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        for signum in signums:
            signal.signal(signum, lambda number, frame: self.signals.append(number))

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, READ_BYTES)

    def spawn(self, index: int, argv: Sequence[str], env: Mapping[str, str]) -> Process:
        """Starts a program whose life cannot outlast ours."""
        shim = [sys.executable, "-I", "-S", str(HERE / "_child.py"), str(os.getpid()), str(self._guard_pipe)]
        popen = subprocess.Popen(
            [*shim, *argv],
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(self._guard_pipe,),
            start_new_session=True,
        )
        process = Process(index, popen, os.pidfd_open(popen.pid), [])
        for is_error, pipe in ((False, popen.stdout), (True, popen.stderr)):
            assert pipe is not None
            self._follow(process, is_error, pipe)
        self._selector.register(process.descriptor, selectors.EVENT_READ, lambda: self._reap(process))
        self.living.append(process)
        return process

    def _follow(self, process: Process, is_error: bool, pipe: IO[bytes]) -> None:
        reader = LineReader(pipe, lambda line: self.sink(process.index, is_error, line))
        process.readers.append(reader)

        def on_ready() -> None:
            if reader.read() == 0:
                self._selector.unregister(pipe)
                reader.finish()

        self._selector.register(pipe, selectors.EVENT_READ, on_ready)

    def _reap(self, process: Process) -> None:
        """The leader ended: its group goes first, then it is reaped and its last output shown."""
        process.signal(signal.SIGKILL)
        process.ended = True
        os.write(self._guard_pipe, b"-%d\n" % process.pid)
        process.popen.wait()
        self._selector.unregister(process.descriptor)
        os.close(process.descriptor)
        for reader in process.readers:
            if not reader.pipe.closed:
                self._selector.unregister(reader.pipe)
                reader.finish()
        self.living.remove(process)

    def turn(self, timeout: float | None) -> list[Process]:
        """Waits for something to happen, handles it; returns the processes that ended."""
        before = list(self.living)
        for key, _ in self._selector.select(timeout):
            if key.fd in self._selector.get_map():
                key.data()
        return [process for process in before if process.ended]

    def close(self) -> None:
        """Kills whatever still lives and takes the guard away."""
        for process in list(self.living):
            process.killed_by_us = True
            process.signal(signal.SIGKILL)
        while self.living:
            self.turn(None)
        os.close(self._guard_pipe)
        self._guard.wait()
        if hasattr(self, "_wake_read"):
            signal.set_wakeup_fd(-1)
            os.close(self._wake_read)
            os.close(self._wake_write)
        self._selector.close()
