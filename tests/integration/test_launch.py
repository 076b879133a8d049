"""`pccl launch` with real processes: output, exit codes, signals, and who is left afterwards (nobody)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 60

# Ends when a signal ends it, or never.
WAIT = "import signal\nprint('ready')\nsignal.pause()\n"


def launch(tmp_path: Path, script: str, *options: str, arguments: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    return subprocess.Popen(
        [*PCCL, "launch", *options, str(path), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"still running after {PATIENCE_S} s\n{out}\n{err}")
    return process.returncode, out, err


def read_lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


@contextmanager
def watched(pids: list[int]) -> Iterator[list[int]]:
    """Descriptors that become readable when the processes end."""
    descriptors = [os.pidfd_open(pid) for pid in pids]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_output_is_prefixed_and_peers_are_told_what_they_need(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "print('index', os.environ['PCCL_LAUNCH_INDEX'], *sys.argv[1:])\n"
        "print('threads', os.environ['OMP_NUM_THREADS'])\n"
        "assert os.environ['PCCL_COORDINATOR'].startswith('tcp://127.0.0.1:')\n"
        "assert os.environ['PCCL_RUN'] == 'mine' and len(os.environ['PCCL_SECRET']) >= 32\n"
        "sys.stderr.write('no end of line')\n"
    )
    process = launch(tmp_path, script, "-n", "2", "--run", "mine", arguments=("-n", "--flag", "x"))
    code, out, err = finish(process)
    assert code == 0, err
    assert sorted(out.splitlines()) == [
        "[0] index 0 -n --flag x",
        "[0] threads 1",
        "[1] index 1 -n --flag x",
        "[1] threads 1",
    ]
    assert {"[0] no end of line", "[1] no end of line"} <= set(err.splitlines())


def test_modules_run_as_with_python_m(tmp_path: Path) -> None:
    (tmp_path / "a_module.py").write_text("import sys\nprint(__name__, *sys.argv[1:])\n")
    process = subprocess.Popen(
        [*PCCL, "launch", "-n", "1", "-m", "a_module", "-m", "last"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    code, out, err = finish(process)
    assert (code, out) == (0, "[0] __main__ -m last\n"), err


def test_the_exit_code_is_that_of_the_first_failure_and_the_others_are_ended(tmp_path: Path) -> None:
    script = "import os, signal\nif os.environ['PCCL_LAUNCH_INDEX'] == '1': raise SystemExit(7)\nsignal.pause()\n"
    code, _, err = finish(launch(tmp_path, script, "-n", "3", "--grace", "0.3"))
    assert code == 7
    assert "peer 1" in err
    assert "exit code 7" in err
    assert "terminating 2 peers" in err


def test_a_peer_that_a_signal_ended_counts_as_failed(tmp_path: Path) -> None:
    code, _, err = finish(launch(tmp_path, "import os\nos.abort()\n", "-n", "1"))
    assert code == 128 + signal.SIGABRT
    assert "SIGABRT" in err


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_and_the_peers_decide(tmp_path: Path, signum: signal.Signals) -> None:
    script = (
        "import signal\n"
        "def end(number, frame):\n    print('got', number)\n    raise SystemExit(0)\n"
        "signal.signal(signal.SIGINT, end)\nsignal.signal(signal.SIGTERM, end)\n"
        "print('ready')\nsignal.pause()\n"
    )
    process = launch(tmp_path, script, "-n", "2")
    assert sorted(read_lines(process, 2)) == ["[0] ready", "[1] ready"]
    process.send_signal(signum)
    code, out, err = finish(process)
    assert code == 0, err
    assert sorted(out.splitlines()) == [f"[0] got {int(signum)}", f"[1] got {int(signum)}"]


def test_peers_that_do_nothing_about_ctrl_c_end_with_it(tmp_path: Path) -> None:
    process = launch(tmp_path, WAIT, "-n", "2")
    read_lines(process, 2)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 128 + signal.SIGINT


def test_a_second_ctrl_c_kills_what_ignores_the_first(tmp_path: Path) -> None:
    # os.write: the signal may come while print('ready') has not returned yet, and print cannot be entered twice.
    script = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, lambda *_: os.write(1, b'ignored\\n'))\n"
        "print('ready')\n"
        "while True: signal.pause()\n"
    )
    process = launch(tmp_path, script, "-n", "1")
    read_lines(process, 1)
    process.send_signal(signal.SIGINT)
    assert read_lines(process, 1) == ["[0] ignored"]
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 128 + signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_outlives_the_launcher(tmp_path: Path, signum: signal.Signals) -> None:
    """Neither the peers nor what they started, however the launcher ends."""
    script = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        "print(os.getpid(), child.pid)\nsignal.pause()\n"
    )
    process = launch(tmp_path, script, "-n", "2")
    pids = [int(pid) for line in read_lines(process, 2) for pid in line.split()[1:]]
    assert len(pids) == 4
    with watched(pids) as alive:
        process.send_signal(signum)
        finish(process)
        while alive:
            ended, _, _ = select.select(alive, [], [], PATIENCE_S)
            assert ended, "a process outlived the launcher"
            alive = [descriptor for descriptor in alive if descriptor not in ended]


def test_what_a_peer_leaves_behind_goes_with_it(tmp_path: Path) -> None:
    """The grandchild holds the writing end of a fifo: its end is the fifo's end."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = (
        "import os, subprocess, sys\n"
        f"end = os.open({str(fifo)!r}, os.O_WRONLY)\n"
        "code = 'import os, signal, sys; os.write(int(sys.argv[1]), b\"alive\"); signal.pause()'\n"
        "subprocess.Popen([sys.executable, '-c', code, str(end)], pass_fds=[end])\n"
        "os.read(os.open(sys.argv[1], os.O_RDONLY), 1)\n"
    )
    go = tmp_path / "go"
    os.mkfifo(go)
    process = launch(tmp_path, script, "-n", "1", arguments=(str(go),))
    with open(fifo, "rb", buffering=0) as pipe:
        assert pipe.read(5) == b"alive"
        with open(go, "wb"):
            pass  # the peer reads the end of this fifo, and ends
        assert select.select([pipe], [], [], PATIENCE_S)[0], "the grandchild outlived the peer"
        assert pipe.read() == b""
    code, _, err = finish(process)
    assert code == 0, err


LOOP = """
import sys
import numpy as np
import pccl

with pccl.connect() as comm:
    x = np.empty(1000, np.float32)
    sizes = []
    while comm.boundary < int(sys.argv[1]):
        x[:] = 1
        result = comm.all_reduce(x, op="sum")
        assert x[0] == x[-1] == result.world_size
        if not sizes or sizes[-1] != result.world_size:
            sizes.append(result.world_size)
            print("world", result.world_size)
        if result.world_size >= int(sys.argv[2]):
            break
        comm.advance()
    comm.barrier()  # nobody leaves while another may still need it
    print("end")
"""


def worlds(out: str, index: int) -> list[int]:
    """The sizes of the world that a peer saw, in order."""
    return [int(line.split()[2]) for line in out.splitlines() if line.startswith(f"[{index}] world")]


def test_a_run_survives_the_peer_that_kill_at_takes(tmp_path: Path) -> None:
    code, out, err = finish(launch(tmp_path, LOOP, "-n", "3", "--kill-at", "200", arguments=("2000", "9")))
    assert code == 0, err
    assert "peer 2" in err
    assert "--kill-at 200" in err
    for index in (0, 1):
        assert worlds(out, index)[-2:] == [3, 2]
        assert f"[{index}] end" in out
    assert "[2] end" not in out


def test_a_run_takes_in_the_peer_that_join_at_starts(tmp_path: Path) -> None:
    """The loop goes on until all three are in: no boundary is high enough to be out of reach by luck."""
    process = launch(tmp_path, LOOP, "-n", "2", "--join-at", "100", arguments=("10000000", "3"))
    code, out, err = finish(process)
    assert code == 0, err
    assert "peer 2 joins at boundary" in err
    assert [worlds(out, index) for index in range(3)] == [[2, 3], [2, 3], [3]]
