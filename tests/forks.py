"""Programs that import torch, without waiting for it each time: a process that has imported it forks for each of them.

`python tests/forks.py PROGRAM ...` is `python PROGRAM ...`, made by the server whose socket is in FORKS_AT: same
directory, environment, standard streams and exit code; who kills it kills the program, but SIGSTOP does not reach it.
Only torch is there already, what its optimizers import when they are first used, and what trains by it; pccl is not. So
whatever starts Python as `python FILE` or `python -m MODULE` (`pccl launch`, a test) runs unchanged, and the processor
has some seconds less to do for each process. What such a program starts by sys.executable comes from the server too;
for a shell there are `python` and `torchrun` in stand_ins().
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORKS_AT = "FORKS_AT"
FORKED = str(Path(__file__).resolve())
REQUEST_BYTES_MAX = 1 << 20
#: What is there already; optimizers import torch._dynamo in their first step.
IMPORTED = ("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run", "pytorch_lightning", "accelerate")
#: Programs beside the socket, which are as they are named, but made by the server.
STAND_INS = {"python": "", "torchrun": "-m torch.distributed.run"}


@contextlib.contextmanager
def server() -> Iterator[None]:
    """The server; processes that are started meanwhile find it."""
    with tempfile.TemporaryDirectory(prefix="pccl-forks-") as folder:
        path = str(Path(folder) / "socket")
        for name, words in STAND_INS.items():
            stand_in = Path(folder) / name
            stand_in.write_text(f'#!/bin/sh\n{FORKS_AT}="{path}" exec "{sys.executable}" "{FORKED}" {words} "$@"\n')
            stand_in.chmod(0o700)
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-u", FORKED, "--serve", path]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", "the server ended before it served"
            os.environ[FORKS_AT] = path
            yield
            del os.environ[FORKS_AT]
            process.communicate()  # its standard input ends, and so does it


def stand_ins() -> Path:
    """The folder of STAND_INS, while there is a server."""
    return Path(os.environ[FORKS_AT]).parent


# -- the program's place -----------------------------------------------------------------------------------------------


def ask(words: list[str]) -> int:
    """Has a program run; its exit code, negative for a signal that killed it."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ[FORKS_AT])
        request = json.dumps({"argv": words, "cwd": os.getcwd(), "environ": dict(os.environ)}).encode()
        socket.send_fds(server, [len(request).to_bytes(4, "little")], [0, 1, 2])
        server.sendall(request)
        answer = server.recv(4)
        return int.from_bytes(answer, "little", signed=True) if answer else 1


# -- the server --------------------------------------------------------------------------------------------------------


def serve(path: str) -> dict[str, Any] | None:
    """Forks for every request until standard input ends: then None. In the child the request, as it is to be run."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    with selectors.DefaultSelector() as waiting:
        waiting.register(0, selectors.EVENT_READ, None)
        waiting.register(listener, selectors.EVENT_READ, None)
        while True:
            for key, _ in waiting.select():
                if key.fileobj == 0:
                    return None
                if key.data is not None:
                    _end(waiting, *key.data)
                    break  # what else was ready may be of the same child
                client, _ = listener.accept()
                with client:
                    request, fds = _received(client)
                    pid = os.fork()
                    if pid == 0:
                        listener.close()
                        return {**request, "fds": fds}
                    for fd in fds:
                        os.close(fd)
                    _watch(waiting, pid, client.detach())


def _received(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    size, fds, _, _ = socket.recv_fds(client, 4, 3)
    wanted, data = int.from_bytes(size, "little"), b""
    assert wanted <= REQUEST_BYTES_MAX
    while len(data) < wanted:
        data += client.recv(wanted - len(data))
    return json.loads(data), list(fds)


def _watch(waiting: selectors.BaseSelector, pid: int, client: int) -> None:
    """A child that has ended, and a client that is gone, are both heard of."""
    ended = os.pidfd_open(pid)
    for fd in (ended, client):
        waiting.register(fd, selectors.EVENT_READ, (pid, ended, client))


def _end(waiting: selectors.BaseSelector, pid: int, ended: int, client: int) -> None:
    """The child goes with its client."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(ended, signal.SIGKILL)  # nothing to one that has ended
    _, status = os.waitpid(pid, 0)
    for fd in (ended, client):
        waiting.unregister(fd)
    os.close(ended)
    with socket.socket(fileno=client) as connection, contextlib.suppress(OSError):
        connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "little", signed=True))


def become(request: dict[str, Any]) -> None:
    """The program, in the child."""
    for number, fd in enumerate(request["fds"]):
        os.dup2(fd, number)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["environ"])
    os.chdir(request["cwd"])
    sys.executable = str(stand_ins() / "python")
    words = request["argv"]
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if words[0] == "-m":
        sys.argv[:] = words[1:]
        sys.path[:1] = [os.getcwd(), *added]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    program = words[0]
    sys.argv[:] = words
    sys.path[:1] = [str(Path(program).resolve().parent), *added]
    module = types.ModuleType("__main__")
    module.__file__ = program
    sys.modules["__main__"] = module
    exec(compile(Path(program).read_bytes(), program, "exec"), module.__dict__)


def main() -> None:
    """See above."""
    if sys.argv[1] != "--serve":
        words = sys.argv[2:] if sys.argv[1] == "-u" else sys.argv[1:]  # the server's streams have no buffers
        if words[0][0] == "-" and words[0] != "-m":
            os.execv(sys.executable, [sys.executable, *words])
        code = ask(words)
        if code == -signal.SIGKILL:  # the same end
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(code)
    for name in IMPORTED:
        with contextlib.suppress(ModuleNotFoundError):  # then tests that want it are skipped
            importlib.import_module(name)
    gc.freeze()  # else every child would write to all of it when it collects garbage, as each does when it ends
    request = serve(sys.argv[2])
    if request is not None:
        become(request)


if __name__ == "__main__":
    main()
