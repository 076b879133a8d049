"""What is served by HTTP: to whom, which paths, with which headers, and how requests that are none end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from unit.eyes_status import example

from pccl import messages as m
from pccl.coordinator import eyes
from pccl.errors import ArgumentError, PcclError

LONG_S = 20.0


class Source:
    """Gives a status, and counts how often."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> m.Status:
        self.asked += 1
        return example()


@pytest.fixture
def served() -> Iterator[eyes.Eyes]:
    with eyes.Eyes(Source(), "0") as found:
        yield found


def talk(served: eyes.Eyes, request: bytes) -> bytes:
    """All that comes back until the end of the connection."""
    with socket.create_connection((served.host, served.port), LONG_S) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def get(
    served: eyes.Eyes, path: str, method: str = "GET", host: str = "localhost"
) -> tuple[int, dict[str, str], bytes]:
    """(status, fields, body)."""
    answer = talk(served, f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize(
    ("path", "kind", "inside"),
    [
        ("/", "text/html; charset=utf-8", b"<title>pccl</title>"),
        ("/page.js", "text/javascript; charset=utf-8", b"status.json"),
        ("/charts.js", "text/javascript; charset=utf-8", b"textContent"),
        ("/page.css", "text/css; charset=utf-8", b"prefers-color-scheme"),
        ("/status.json?now", "application/json", b'"run":"demo"'),
        ("/metrics", "text/plain", b"pccl_members{"),
    ],
)
def test_what_there_is_to_see(served: eyes.Eyes, path: str, kind: str, inside: bytes) -> None:
    status, fields, body = get(served, path)
    assert status == 200
    assert fields["Content-Type"].startswith(kind)
    assert inside in body
    assert int(fields["Content-Length"]) == len(body)
    assert fields["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
    assert fields["X-Content-Type-Options"] == "nosniff"


MARKUP = ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(")


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_markup() -> None:
    page = eyes.resources.files("pccl.coordinator") / "page"
    files = {name: (page / name).read_text() for name, _ in eyes.FILES.values()}
    for name, text in files.items():
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), name
        assert not [word for word in MARKUP if word in text], name
    assert "<script>" not in files["index.html"] and "style=" not in files["index.html"]


def test_the_status_as_json_is_the_one_of_pccl_status(served: eyes.Eyes) -> None:
    assert json.loads(get(served, "/status.json")[2]) == json.loads(json.dumps(m.plain(example())))


def test_head_has_no_body(served: eyes.Eyes) -> None:
    status, fields, body = get(served, "/metrics", "HEAD")
    assert (status, body) == (200, b"")
    assert int(fields["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("POST", "/", "localhost", 405),
        ("DELETE", "/status.json", "localhost", 405),
        ("GET", "/nothing", "localhost", 404),
        ("GET", "/../server.py", "localhost", 404),
        ("GET", "http://elsewhere/", "localhost", 400),
        ("GET", "/", "elsewhere.example", 421),
        ("GET", "/", "127.0.0.1:80", 200),
        ("GET", "/", "[::1]:80", 200),
    ],
)
def test_who_asks_for_something_else(served: eyes.Eyes, method: str, path: str, host: str, status: int) -> None:
    found, fields, _ = get(served, path, method, host)
    assert found == status
    assert fields["Content-Security-Policy"] == eyes.POLICY
    assert ("Allow" in fields) == (status == 405)


@pytest.mark.parametrize("head", [b"", b"GET", b"\x16\x03\x01 \x00 x", b"GET / HTTP/2"])
def test_what_is_no_request(served: eyes.Eyes, head: bytes) -> None:
    assert talk(served, head + b"\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_a_request_that_is_too_long(served: eyes.Eyes) -> None:
    field = b"X: " + b"x" * (eyes.REQUEST_BYTES_MAX - 2)
    assert talk(served, b"GET / HTTP/1.1\r\n" + field).startswith(b"HTTP/1.1 431 ")


def test_who_says_nothing_is_turned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyes, "DEADLINE_S", 0.2)
    with eyes.Eyes(Source(), "0") as served, socket.create_connection((served.host, served.port), LONG_S) as connection:
        connection.sendall(b"GET / HT")
        assert connection.recv(100) == b"", "the end, and no answer"


def test_too_many_visitors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyes, "VISITORS_MAX", 2)
    with eyes.Eyes(Source(), "0") as served:
        idle = [socket.create_connection((served.host, served.port), LONG_S) for _ in range(2)]
        try:
            with socket.create_connection((served.host, served.port), LONG_S) as third:
                assert third.recv(100).startswith(b"HTTP/1.1 503 ")
        finally:
            for connection in idle:
                connection.close()


def test_however_many_ask_the_coordinator_is_asked_now_and_then() -> None:
    now, source = [0.0], Source()
    gallery = eyes.Gallery(source, lambda: now[0])
    for path in ("/status.json", "/metrics", "/status.json", "/"):
        assert gallery.show(path) is not None
    assert source.asked == 1
    now[0] = eyes.FRESH_S
    gallery.show("/metrics")
    assert source.asked == 2


def test_an_end_with_visitors_inside_leaves_no_thread() -> None:
    served = eyes.Eyes(Source(), "0")
    served.start()
    with socket.create_connection((served.host, served.port), LONG_S) as connection:
        connection.sendall(b"GET / HT")
        served.close()
        served.close()
    assert "pccl-eyes" not in [thread.name for thread in threading.enumerate()]


def test_a_port_that_is_taken(served: eyes.Eyes) -> None:
    with pytest.raises(PcclError, match="cannot serve HTTP at"):
        eyes.Eyes(Source(), str(served.port)).start()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("9400", ("127.0.0.1", 9400)),
        (":9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::]:2", ("::", 2)),
        ("localhost:3", ("localhost", 3)),
    ],
)
def test_where_to_serve(text: str, found: tuple[str, int]) -> None:
    assert eyes.parse_bind(text) == found


@pytest.mark.parametrize("text", ["", "x", "host:", "1:2:3", "70000", "-1", "http://x:1", "٣"])
def test_where_nobody_can_serve(text: str) -> None:
    with pytest.raises(ArgumentError, match="not where HTTP can be served"):
        eyes.parse_bind(text)


@pytest.mark.parametrize(
    ("bind", "is_open"), [("0", False), ("localhost:0", False), ("[::1]:0", False), ("0.0.0.0:0", True)]
)
def test_who_is_let_in_from_outside_is_known(bind: str, is_open: bool) -> None:
    assert eyes.Eyes(Source(), bind).is_open == is_open


def test_a_host_from_outside_may_use_any_name() -> None:
    gallery = eyes.Gallery(Source())
    request = b"GET / HTTP/1.1\r\nHost: run.example"
    assert eyes.answer(request, gallery).startswith(b"HTTP/1.1 200 ")
    assert eyes.answer(request, gallery, ("localhost",)).startswith(b"HTTP/1.1 421 ")
