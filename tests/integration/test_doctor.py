"""`pccl doctor` over loopback: both sides as processes, what they print, and how each failure is named."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.doctor_wire import Talk, accept, challenge, key_of, receive

PCCL = [sys.executable, "-c", "from pccl.cli import main; main()"]
PATIENCE_S = 90
SECRET = "a secret of this test"
FINDINGS = 17
BRIEF = ("--seconds", "0.3", "--streams", "3")
#: Counted for much longer than TCP's least retransmission timeout (0.2 s), which even loopback may have to wait for.
LONG_ENOUGH = ("--seconds", "1", "--streams", "3")

Found = dict[tuple[str, str], dict[str, Any]]


def environment(secret: str = SECRET) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PCCL_")}
    return {**kept, "PCCL_SECRET": secret, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


@contextmanager
def listener(cwd: Path, *options: str, at: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, address) of one that has begun to listen."""
    process = subprocess.Popen(
        [*PCCL, "doctor", "--listen", at, *options],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"listening at (\S+:\d+);", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def client(cwd: Path, address: str, *options: str, secret: str = SECRET) -> subprocess.CompletedProcess[str]:
    command = [*PCCL, "doctor", address, *options]
    return subprocess.run(command, cwd=cwd, env=environment(secret), capture_output=True, text=True, timeout=PATIENCE_S)


def found_in(output: str) -> Found:
    """The findings of --json by check and place."""
    rows = [json.loads(line) for line in output.splitlines()]
    return {(row["check"], row["where"]): row for row in rows}


def here() -> tuple[str, str]:
    """How the two sides are called when both are this host."""
    return f"{socket.gethostname()} (client)", f"{socket.gethostname()} (listener)"


# -- an examination --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_both_sides_find_the_same(tmp_path: Path, host: str) -> None:
    with listener(tmp_path, "--json", at=f"{host}:0") as (process, address):
        done = client(tmp_path, address, "--json", *LONG_ENOUGH)
        theirs, notes = process.communicate(timeout=PATIENCE_S)
    assert (done.returncode, process.returncode) == (0, 0), done.stdout + done.stderr + notes
    assert done.stdout == theirs
    assert SECRET not in done.stdout + done.stderr + theirs + notes
    found, (here_, there) = found_in(done.stdout), here()
    assert len(found) == FINDINGS
    up, down = f"{here_} -> {there}", f"{there} -> {here_}"
    for where, reached in ((up, address), (down, None)):
        assert found["reachability", where]["level"] == "ok"
        assert found["reachability", where]["behind_nat"] is False
        assert reached is None or found["reachability", where]["reached"] == [reached]
        rates = found["bandwidth", where]
        assert min(rates["one_stream_mbit_per_s"], rates["all_streams_mbit_per_s"]) > 10
        assert (rates["streams"], rates["streams_lost"]) == (3, 0)
        assert found["loss", where]["segments"] > 10
        assert found["path MTU", where]["mss_bytes"] > 1000
        assert found["buffers", where]["path_bytes"] > 0
    rtt = found["round trip", f"{here_} <-> {there}"]
    assert 0 < rtt["min_ms"] <= rtt["median_ms"] <= rtt["max_ms"]
    assert rtt["round_trips"] >= 3
    clocks = found["clocks", f"{here_} <-> {there}"]
    assert abs(clocks["offset_ms"]) <= clocks["bound_ms"], "both are one clock"
    assert found["versions", f"{here_} <-> {there}"]["client_wire_version"] == 1
    assert found["congestion control", here_]["in_force"]


def test_the_page_for_people(tmp_path: Path) -> None:
    with listener(tmp_path) as (process, address):
        done = client(tmp_path, address, *BRIEF, "--call-back", "127.0.0.2:0")
        theirs, _ = process.communicate(timeout=PATIENCE_S)
    for page in (done.stdout, theirs):
        assert "reachability" in page
        assert "round trip" in page
        assert re.search(r"^problems: 0, advice: \d+$", page, re.MULTILINE)
        change = [line for line in page.splitlines() if "PCCL_LISTEN=[::]:29500" in line]
        assert len(change) == 1, "what to change stands in one line, to be copied"
    assert (done.returncode, process.returncode) == (0, 0)


def test_a_client_that_cannot_be_dialled_back(tmp_path: Path) -> None:
    """It listens at an address of loopback that is not the one where it is seen."""
    with listener(tmp_path, "--json") as (process, address):
        done = client(tmp_path, address, "--json", *BRIEF, "--call-back", "127.0.0.2:0")
        process.communicate(timeout=PATIENCE_S)
    here_, there = here()
    found = found_in(done.stdout)
    one = found["reachability", f"{there} -> {here_}"]
    assert one["level"] == "advice" and f"in a run {here_} dials {there}" in one["text"]
    assert "not at 127.0.0.2 only: PCCL_LISTEN=[::]:29500" in one["change"]
    assert list(one["failed"].values()) == ["refused"]
    assert found["reachability", f"{here_} -> {there}"]["level"] == "ok"
    assert not [key for key, row in found.items() if row["level"] == "problem"]
    assert (done.returncode, process.returncode) == (0, 0)


def test_advertised_addresses_are_dialled_by_the_other_side(tmp_path: Path) -> None:
    """The client's reaches a stranger, the listener's nobody; both were reached elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as stranger, socket.create_server(("127.0.0.1", 0)) as nobody:
        strange = f"127.0.0.1:{stranger.getsockname()[1]}"
        refused = f"127.0.0.1:{nobody.getsockname()[1]}"
        nobody.close()
        end = threading.Thread(target=lambda: stranger.accept()[0].close(), daemon=True)
        end.start()
        with listener(tmp_path, "--advertise", refused) as (process, address):
            done = client(tmp_path, address, "--json", *BRIEF, "--advertise", strange)
            process.communicate(timeout=PATIENCE_S)
        end.join(PATIENCE_S)
    here_, there = here()
    found = found_in(done.stdout)
    up, down = found["reachability", f"{here_} -> {there}"], found["reachability", f"{there} -> {here_}"]
    assert up["failed"] == {refused: "refused"}
    assert f"PCCL_ADVERTISE={address}" in up["change"]
    assert down["failed"] == {strange: "stranger"}
    assert re.fullmatch(rf"{re.escape(strange)} (closed the connection|is gone: .*)", down["details"][0])
    assert re.search(r"PCCL_ADVERTISE=127\.0\.0\.1:\d+ PCCL_LISTEN", down["change"])
    assert (up["level"], down["level"], done.returncode) == ("problem", "problem", 1)


def test_a_listener_that_is_kept_serves_one_after_another(tmp_path: Path) -> None:
    with listener(tmp_path, "--keep", "--json") as (process, address):
        for _ in range(2):
            assert client(tmp_path, address, *BRIEF).returncode == 0
        assert client(tmp_path, address, secret="another").returncode == 1
        assert client(tmp_path, address, *BRIEF).returncode == 0
        process.send_signal(signal.SIGINT)
        out, notes = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert len(out.splitlines()) == 3 * FINDINGS
    assert "turned away: 127.0.0.1:" in notes
    assert "Traceback" not in notes


def test_an_interrupted_client_ends_its_examination(tmp_path: Path) -> None:
    with listener(tmp_path) as (process, address):
        command = [*PCCL, "doctor", address, "--seconds", "30"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        other = subprocess.Popen(command, cwd=tmp_path, env=environment(), text=True, **pipes)  # type: ignore[call-overload]
        assert any("bandwidth" in line for line in other.stderr)
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=PATIENCE_S)
        _, notes = process.communicate(timeout=PATIENCE_S)
    assert other.returncode == 1
    assert process.returncode == 1
    assert re.search(r"Error: 127\.0\.0\.1:\d+ (is gone|closed the connection)", notes), notes


# -- what goes wrong, by name ----------------------------------------------------------------------------------------


def fails(done: subprocess.CompletedProcess[str], text: str) -> None:
    assert done.returncode == 1
    assert re.search(text, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_secret_is_named_on_both_sides(tmp_path: Path) -> None:
    with listener(tmp_path, "--wait", "60") as (process, address):
        refusal = rf"Error: {re.escape(address)} has another secret or run: PCCL_SECRET"
        fails(client(tmp_path, address, secret="another"), refusal)
        fails(client(tmp_path, address, "--run", "another"), refusal)
        done = client(tmp_path, address, *BRIEF)
        _, notes = process.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0, "strangers have not used it up"
    assert len(re.findall(r"turned away: 127\.0\.0\.1:\d+ does not know the secret", notes)) == 2


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    fails(
        client(tmp_path, f"127.0.0.1:{port}"), rf"Error: nobody listens at 127\.0\.0\.1:{port}, or a firewall refuses"
    )


def test_nobody_comes(tmp_path: Path) -> None:
    with listener(tmp_path, "--wait", "0.2") as (process, address):
        _, notes = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert f"Error: nobody who knows the secret came to {address} within 0.2 s" in notes


@contextmanager
def impostor(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of one who does with its first caller what the test says; it is kept open until the end."""
    errors: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept_one() -> None:
            try:
                sock, _ = server.accept()
                sock.settimeout(PATIENCE_S)
                with sock:
                    serve(sock)
                    sock.settimeout(None)
                    while sock.recv(65536):
                        pass
            except ConnectionError:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                errors.append(error)

        thread = threading.Thread(target=accept_one, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(PATIENCE_S)
    if errors:
        raise errors[0]


def says_nothing(sock: socket.socket) -> None:
    """The listener is frozen, or something else waits for us to speak."""


def says_http(sock: socket.socket) -> None:
    receive(sock, 64)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def says_another_version(sock: socket.socket) -> None:
    receive(sock, 64)
    sock.sendall(challenge(version=2)[:12])


def closes(sock: socket.socket) -> None:
    receive(sock, 64)
    sock.shutdown(socket.SHUT_RDWR)


def welcomes_everybody(sock: socket.socket) -> None:
    receive(sock, 64)
    sock.sendall(challenge())
    receive(sock, 32)
    sock.sendall(bytes(36))


def announces_too_much(sock: socket.socket) -> None:
    accept(sock, key_of(SECRET))
    sock.sendall(b"\xff\xff\xff\x7f")


def signs_wrongly(sock: socket.socket) -> None:
    said = accept(sock, key_of(SECRET))
    Talk(sock, b"another key", said, "listener").say("Bye")


def says_what_was_not_asked(sock: socket.socket) -> None:
    talk = Talk(sock, key_of(SECRET), accept(sock, key_of(SECRET)), "listener")
    assert talk.hear()[0] == "Open"
    talk.say("Bye")


def says_nonsense(sock: socket.socket) -> None:
    talk = Talk(sock, key_of(SECRET), accept(sock, key_of(SECRET)), "listener")
    assert talk.hear()[0] == "Open"
    talk.say_bytes(b"\xc1")


def gives_up(sock: socket.socket) -> None:
    talk = Talk(sock, key_of(SECRET), accept(sock, key_of(SECRET)), "listener")
    assert talk.hear()[0] == "Open"
    talk.say("Failed", "no more descriptors")


@pytest.mark.parametrize(
    ("serve", "text"),
    [
        (says_nothing, r"took the connection, but said nothing for 5 s: no pccl doctor --listen there\?"),
        (says_http, r"does not speak pccl doctor"),
        (says_another_version, r"speaks version 2 of pccl doctor, this side version 1: install the same pccl"),
        (closes, r"closed the connection"),
        (welcomes_everybody, r"does not know the secret"),
        (announces_too_much, r"announced a message of 2147483647 bytes"),
        (signs_wrongly, r"was changed on the way: its signature is wrong"),
        (says_what_was_not_asked, r"said Bye where Welcome was expected"),
        (says_nonsense, r"said what does not decode"),
        (gives_up, r"gave up: no more descriptors"),
    ],
)
def test_a_listener_that_misbehaves_is_named(tmp_path: Path, serve: Callable[[socket.socket], None], text: str) -> None:
    with impostor(serve) as address:
        fails(client(tmp_path, address), rf"{re.escape(address)}.*{text}")


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    for arguments, text in (
        ([], "either --listen PORT or the HOST:PORT"),
        (["h:1", "--listen", "2"], "either --listen PORT or the HOST:PORT"),
        (["--listen", "host"], "'host' is not host:port"),
        (["--listen", "127.0.0.1:x"], "names no valid port"),
        (["127.0.0.1"], "'127.0.0.1' is not host:port"),
        (["127.0.0.1:1", "--call-back", "x:y"], "names no valid port"),
        (["127.0.0.1:1", "--advertise", "1.2.3.4:x"], "advertise: '1.2.3.4:x'"),
        (["127.0.0.1:1", "--advertise", "1,2,3,4,5"], "at most 4 addresses"),
        (["127.0.0.1:1", "--streams", "1000"], "--streams"),
    ):
        done = subprocess.run(
            [*PCCL, "doctor", *arguments], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode in (1, 2), arguments
        assert text in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = [*PCCL, "doctor", "--listen", address]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    fails(done, rf"Error: cannot listen at {re.escape(address)}: Address already in use")


def test_without_a_secret_there_is_a_warning(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = client(tmp_path, f"127.0.0.1:{port}", secret="")
    assert "warning: no secret: anybody who reaches the port" in done.stderr
