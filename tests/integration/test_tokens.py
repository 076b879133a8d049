"""Who enters by a token reduces with the others, over TLS too, and stays; a token that does not hold opens nothing."""

from __future__ import annotations

import json
import logging
import threading
import time

import numpy as np
import pytest
import zmq
from click.testing import CliRunner, Result
from integration.conftest import SECRET, Cluster

import pccl
from pccl import messages as m
from pccl import tokens
from pccl.cli import status
from pccl.coordinator.server import Coordinator
from pccl.errors import AuthError, CoordinatorLost
from pccl.keys import run_keys

RUN = "llama"
PATIENCE_S = 30.0


def token(ttl_s: float = 600, *, run: str = RUN, secret: str = SECRET, ago_s: float = 0) -> str:
    return tokens.mint(secret.encode(), run, ttl_s, time.time() - ago_s)


def enter(coordinator: Coordinator, ticket: str, **options: object) -> pccl.Communicator:
    settings = {"listen": "127.0.0.1:0", "timeout": PATIENCE_S, "environ": {}} | options
    return pccl.connect(coordinator.address, token=ticket, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("transport", ["auto", "tls"])
def test_who_has_a_token_reduces_with_who_has_the_secret(cluster: Cluster, transport: str) -> None:
    coordinator = cluster.coordinator(2, run=RUN)
    sums: list[float] = []

    def peer(**options: object) -> None:
        given = {"listen": "127.0.0.1:0", "timeout": PATIENCE_S, "environ": {}, "transport": transport} | options
        with pccl.connect(coordinator.address, **given) as comm:  # type: ignore[arg-type]
            array = np.ones(70000, np.float32)
            comm.all_reduce(array)
            sums.append(float(array[-1]))
            comm.barrier(tag="the end")

    threads = [
        threading.Thread(target=peer, kwargs={"run": RUN, "secret": SECRET}),
        threading.Thread(target=peer, kwargs={"token": token()}),  # which names the run
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sums == [2.0, 2.0]


def status_by(coordinator: Coordinator, ticket: str, *options: str) -> Result:
    environment = {"PCCL_TOKEN": ticket, "PCCL_SECRET": None, "PCCL_RUN": None}
    return CliRunner().invoke(status.command, [coordinator.address, "--json", *options], env=environment)


def test_a_token_is_enough_to_ask_for_the_status(cluster: Cluster) -> None:
    coordinator = cluster.coordinator(1, run=RUN)
    with enter(coordinator, token()):
        answer = status_by(coordinator, token())
        assert answer.exit_code == 0, answer.output
        shown = json.loads(answer.output)
        assert shown["run"] == RUN
        assert len(shown["groups"][0]["members"]) == 1


def test_a_token_that_does_not_hold_shows_no_status(cluster: Cluster) -> None:
    coordinator = cluster.coordinator(1, run=RUN)
    for answer, why in (
        (status_by(coordinator, token(ttl_s=5, ago_s=10)), "expired"),
        (status_by(coordinator, token(), "--run", "other"), "for run 'llama'"),
        (status_by(coordinator, "no token"), "token"),
    ):
        assert answer.exit_code == 1
        assert why in answer.output


def test_who_has_entered_stays_when_the_token_expires_and_the_connection_breaks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = cluster.coordinator(1, run=RUN)
    with enter(coordinator, token()) as comm:
        monkeypatch.setattr(coordinator._admission, "_wall_s", lambda: time.time() + 3600)
        control = comm._runtime.control
        assert control._thread is not None
        control._thread.call(control._redial)
        epoch, deadline = comm.epoch, time.monotonic() + PATIENCE_S
        while not any(entry.what == "reconnected" for entry in coordinator.status().groups[0].log):
            assert time.monotonic() < deadline
            comm.advance()
        comm.barrier()
        assert comm.epoch == epoch
        with pytest.raises(AuthError, match="it expired at"):
            enter(coordinator, token())


@pytest.mark.parametrize(
    ("ticket", "reason"),
    [
        (token(10, ago_s=20), "it expired at"),
        (token(secret="another"), "refuses the handshake"),
        (token(60, ago_s=10 * 86400), "or the token is too old"),
    ],
)
def test_what_does_not_hold_opens_nothing(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, ticket: str, reason: str
) -> None:
    coordinator = cluster.coordinator(1, run=RUN)
    with cluster.connect(coordinator, run=RUN) as member:
        epoch = member.epoch
        with caplog.at_level(logging.INFO), pytest.raises(AuthError, match=reason):
            enter(coordinator, ticket)
        member.advance()
        member.barrier()
        assert member.epoch == epoch
        assert ticket not in caplog.text and SECRET not in caplog.text
    if "expired" in reason:
        assert "refused a token, 127.0.0.1: it expired at" in caplog.text


def test_a_token_of_another_run() -> None:
    with Coordinator(run="alpaca", secret=SECRET) as coordinator:
        with pytest.raises(AuthError, match="the token is for run 'llama', not 'alpaca'"):
            enter(coordinator, token(), run="alpaca")
        with pytest.raises(AuthError, match="refuses the handshake"):
            enter(coordinator, token())


def test_nobody_there() -> None:
    with Coordinator(run=RUN, secret=SECRET) as coordinator:
        address = coordinator.address
    with pytest.raises(CoordinatorLost, match="no coordinator answered"):
        pccl.connect(address, token=token(), listen="127.0.0.1:0", timeout=0.3, environ={})


def test_a_guest_is_nobody_to_the_run(cluster: Cluster) -> None:
    """It cannot join, ask or speak for another with a guest's keys; the one it names goes on."""
    coordinator = cluster.coordinator(1, run=RUN)
    ticket = tokens.read(token())
    with cluster.connect(coordinator, run=RUN) as member:
        context = zmq.Context()
        guest = context.socket(zmq.DEALER)
        guest.setsockopt(zmq.LINGER, 0)
        guest.setsockopt(zmq.ROUTING_ID, b"\x02" + bytes(15))
        guest.setsockopt(zmq.CURVE_SERVERKEY, ticket.coordinator)
        guest.setsockopt(zmq.CURVE_PUBLICKEY, ticket.guest.public)
        guest.setsockopt(zmq.CURVE_SECRETKEY, ticket.guest.secret)
        guest.connect(coordinator.address)
        for message in (m.StatusRequest(m.VERSION, RUN), m.Leave(m.VERSION, "")):
            guest.send(m.encode(message))
        guest.send(m.encode(m.KeysRequest(m.VERSION, ticket.text)))
        assert guest.poll(int(PATIENCE_S * 1000))
        answer = m.decode_at_peer(guest.recv())
        assert isinstance(answer, m.Keys) and answer.data == run_keys(SECRET.encode(), RUN).data
        context.destroy(linger=0)
        assert coordinator.status().malformed == 2
        member.barrier()
