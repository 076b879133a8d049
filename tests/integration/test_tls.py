"""TLS on the data plane: a run goes over it; who does not prove himself is refused, named in the log, felt by none."""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.certificates import Authority
from integration.test_hostile import PATIENCE_S, Loop, data_ports, dial, running
from integration.wire import hello, run_id

import pccl
from pccl import _native
from pccl.coordinator.server import Coordinator

pytestmark = pytest.mark.skipif(bool(_native.tls_missing()), reason=f"no TLS here: {_native.tls_missing()}")


def add(comm: pccl.Communicator) -> float:
    big = np.full(3_000_000, 2.0**comm.rank, np.float32)
    comm.all_reduce(big)
    assert (big == big[0]).all()
    return float(big[0])


def test_a_run_by_the_secret(cluster: Callable[..., list[Any]]) -> None:
    assert cluster(3, add, transport="tls") == [7.0, 7.0, 7.0]


def test_a_run_by_certificates(cluster: Callable[..., list[Any]], tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    assert cluster(3, add, tls=(ours.file, *ours.issue("peer"))) == [7.0, 7.0, 7.0]


def wait_for_log(caplog: pytest.LogCaptureFixture, loop: Loop, words: str) -> None:
    """Until a warning says so; the run goes on meanwhile."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if any(words in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING):
            return
        loop.goes_on(1)
    raise AssertionError(f"no warning says {words!r}: {[record.getMessage() for record in caplog.records]}")


def first_port(coordinator: Coordinator) -> tuple[bytes, int]:
    return next(iter(data_ports(coordinator).items()))


def handshake(port: int, context: ssl.SSLContext) -> None:
    """Until the other side has accepted us; raises what OpenSSL says if it does not."""
    context.check_hostname = False
    with dial(port) as sock, context.wrap_socket(sock) as tls:
        tls.sendall(b"x")
        assert tls.recv(1) != b"", "it hung up without a word"


def client(authority: Authority | None = None, issued: tuple[str, str] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if authority is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(authority.file)
    if issued is not None:
        context.load_cert_chain(*issued)
    return context


def test_strangers_at_a_port_of_the_secret(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    with running(cluster, transport="tls") as (loop, coordinator):
        peer, port = first_port(coordinator)
        with dial(port) as sock:  # a peer that is not told to use TLS
            sock.sendall(hello(run_id("default"), secrets.token_bytes(16), peer))
            answer = sock.recv(2)
            assert answer in (b"", b"\x15\x03")
        wait_for_log(caplog, loop, "it does not speak TLS")
        with pytest.raises((ssl.SSLError, ConnectionError)):  # TLS, but nothing proven
            handshake(port, client())
        old = client()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, old)
        wait_for_log(caplog, loop, "unsupported protocol")


def test_bad_certificates(cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ours, foreign = Authority(tmp_path, "ours"), Authority(tmp_path, "foreign")
    with running(cluster, tls=(ours.file, *ours.issue("peer"))) as (loop, coordinator):
        _, port = first_port(coordinator)
        for issued, words in (
            (ours.issue("old", days=-1), "certificate has expired"),
            (foreign.issue("them"), "unable to get local issuer certificate"),
            (None, "peer did not return a certificate"),
        ):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                handshake(port, client(ours, issued))
            wait_for_log(caplog, loop, words)
        old = client(ours, ours.issue("late"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, old)
        wait_for_log(caplog, loop, "unsupported protocol")


def test_tls_at_a_plain_port(cluster: Any, caplog: pytest.LogCaptureFixture) -> None:
    with running(cluster) as (loop, coordinator):
        _, port = first_port(coordinator)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            handshake(port, client())
        wait_for_log(caplog, loop, "it speaks TLS and we do not")


def test_one_address_does_not_fill_the_room(cluster: Any) -> None:
    """Who came first, from another address, is not pushed out by a crowd of one."""
    with running(cluster) as (loop, coordinator):
        peer, port = first_port(coordinator)
        patient = socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=("127.0.0.3", 0))
        crowd = [
            socket.create_connection(("127.0.0.1", port), PATIENCE_S, source_address=("127.0.0.2", 0))
            for _ in range(300)
        ]
        loop.goes_on(2)
        patient.sendall(hello(run_id("default"), secrets.token_bytes(16), peer))
        assert len(patient.recv(76)) == 76, "it was pushed out"
        for sock in (patient, *crowd):
            sock.close()
