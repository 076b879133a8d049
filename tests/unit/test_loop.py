"""The loop's thread ends, or says where it hangs; and what the coordinator imports beside it."""

from __future__ import annotations

import threading

import pytest

from pccl.coordinator.server import Coordinator
from pccl.errors import HungError
from pccl.loop import LoopThread

SECRET = "a secret of this test"
PATIENCE_S = 20.0


def nothing() -> None:
    pass


def test_a_thread_that_hangs_is_named_with_the_place() -> None:
    begun, go_on, torn_down = threading.Event(), threading.Event(), threading.Event()
    thread = LoopThread("pccl-test", nothing, torn_down.set)
    thread.start()

    def hang_here() -> None:
        begun.set()
        go_on.wait()

    thread.call(hang_here)
    assert begun.wait(PATIENCE_S)
    with pytest.raises(HungError, match=r"thread pccl-test has not ended within 0\.05 s: it is in wait, line \d+ of "):
        thread.stop(0.05)
    go_on.set()
    thread.stop(PATIENCE_S)
    assert torn_down.is_set()


def test_a_thread_may_stop_itself() -> None:
    ended = threading.Event()
    thread = LoopThread("pccl-test", nothing, ended.set)
    thread.start()
    thread.call(thread.stop)
    assert ended.wait(PATIENCE_S)
    thread.stop()


@pytest.mark.parametrize(("bind", "wanted"), [("tcp://127.0.0.1:0", False), ("tcp://0.0.0.0:0", True)])
def test_the_solver_is_loaded_beside_the_loop(monkeypatch: pytest.MonkeyPatch, bind: str, wanted: bool) -> None:
    """For peers of several hosts only; the loop answers meanwhile."""
    loading, go_on = threading.Event(), threading.Event()

    def load() -> bool:
        loading.set()
        return go_on.wait(PATIENCE_S)

    monkeypatch.setattr("pccl.coordinator.server.load_solver", load)
    with Coordinator(bind, secret=SECRET) as coordinator:
        answered = threading.Event()
        assert coordinator._thread is not None
        coordinator._thread.call(answered.set)
        assert answered.wait(PATIENCE_S)
        assert loading.wait(PATIENCE_S) if wanted else not loading.is_set()
    go_on.set()
