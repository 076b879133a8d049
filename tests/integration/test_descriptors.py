"""A process that has no descriptors left: what runs goes on, what begins ends with a typed error, nothing dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from integration.conftest import SECRET, Cluster

PATIENCE_S = 60
CHILD = """
import json, os, resource, sys, time
import numpy as np
import pccl
from pccl import tokens
from pccl.coordinator.server import Coordinator

address, mode, free = sys.argv[1], sys.argv[2], int(sys.argv[3])
secret = os.environ["SECRET_OF_THIS_TEST"]
given = {"secret": secret}
if mode == "token":
    given = {"token": tokens.mint(secret.encode(), "default", 60, time.time())}
connect = pccl.connect
comm = connect(address, listen="127.0.0.1:0", timeout=30, environ={}, **given) if mode == "running" else None
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
held = []
while True:
    try:
        held.append(os.dup(0))
    except OSError:
        break
for descriptor in held[len(held) - free :]:
    os.close(descriptor)
array = np.ones(10, np.float32)
calls = {
    "secret": [lambda: connect(address, listen="127.0.0.1:0", timeout=30, environ={}, **given)],
    "coordinator": [lambda: Coordinator(peers_max=8).start()],
    "running": [] if comm is None else [
        lambda: comm.all_reduce(array), lambda: comm.sync_state({"a": array}), comm.advance, comm.barrier,
        lambda: comm.transfers.offer("x", array).withdraw(), comm.close,
    ],
}
said = []
for call in calls["secret" if mode == "token" else mode]:
    try:
        call()
        said.append("")
    except pccl.ResourceError as error:
        said.append(str(error))
for descriptor in held[: len(held) - free]:
    os.close(descriptor)
print(json.dumps(said))
"""


def said(cluster: Cluster, mode: str, free: int) -> list[str]:
    coordinator = cluster.coordinator(1)
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, coordinator.address, mode, str(free)],
        env={**os.environ, "SECRET_OF_THIS_TEST": SECRET},
        cwd="/",  # pccl is the installed one, not the sources beside the tests
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: list[str] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("free", [0, 3])
def test_a_member_goes_on(cluster: Cluster, free: int) -> None:
    assert said(cluster, "running", free) == [""] * 6


@pytest.mark.parametrize(("mode", "who"), [("secret", "a peer"), ("token", "a peer"), ("coordinator", "a coordinator")])
@pytest.mark.parametrize("free", [0, 9, 16, 31])
def test_what_begins_says_what_is_missing(cluster: Cluster, mode: str, who: str, free: int) -> None:
    (text,) = said(cluster, mode, free)
    assert text.startswith(f"{who} needs ") and text.endswith(f"this process may open {free} more: see ulimit -n")


@pytest.mark.parametrize(("mode", "free"), [("secret", 32), ("token", 32), ("coordinator", 48)])
def test_what_is_asked_for_is_enough(cluster: Cluster, mode: str, free: int) -> None:
    assert said(cluster, mode, free) == [""]
