"""eyes.py - shows a run to browsers and to Prometheus: one page, the status as JSON, metrics. Decides nothing.

Serves `/`, its script and style, `/status.json` and `/metrics` by HTTP, from a thread of its own, so that no visitor
can hold up the coordinator: it is asked for its status at most every FRESH_S seconds, however many ask. Everybody who
reaches the port may look: it is on loopback unless the operator names another address. A visitor gets one answer,
has DEADLINE_S seconds for all of it, and says what it wants in REQUEST_BYTES_MAX bytes; others wait outside when
VISITORS_MAX are in. What is shown has neither secrets nor the bytes of tensors.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from importlib import resources
from typing import cast

import msgspec

from pccl import messages as m
from pccl.coordinator import metrics
from pccl.coordinator.places import is_loopback
from pccl.errors import ArgumentError, PcclError
from pccl.loop import LoopThread

FRESH_S = 0.5
DEADLINE_S = 10.0
REQUEST_BYTES_MAX = 8192
VISITORS_MAX = 32
BACKLOG = 32

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
}
REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}
#: Nothing from elsewhere is run, shown or asked, whatever a peer calls itself; nobody may frame the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Connection": "close",
}

Ask = Callable[[], m.Status]


class Gallery:
    """What there is to see, by path: (content type, body). Made anew when it is asked for and not fresh any more."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._asked_at = float("-inf")
        self._made: dict[str, tuple[str, bytes]] = {}
        here = resources.files("pccl.coordinator") / "page"
        self._files = {path: (kind, (here / name).read_bytes()) for path, (name, kind) in FILES.items()}

    def show(self, path: str) -> tuple[str, bytes] | None:
        """None: there is nothing of that name."""
        if path in self._files:
            return self._files[path]
        if path not in ("/status.json", "/metrics"):
            return None
        now = self._clock()
        if now >= self._asked_at + FRESH_S:
            self._status, self._asked_at = self._ask(), now
            self._made.clear()
        if path not in self._made:
            self._made[path] = self._make(path)
        return self._made[path]

    def _make(self, path: str) -> tuple[str, bytes]:
        if path == "/metrics":
            return metrics.CONTENT_TYPE, metrics.exposition(self._status)
        return "application/json", msgspec.json.encode(m.plain(self._status))


class House:
    """Who is inside; nobody is let in any more once it is closed."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self.answer = answer
        self.inside: set[Visitor] = set()
        self.closed = False

    def close(self) -> None:
        """Turns everybody out, also who is at the door but has not been heard of yet."""
        self.closed = True
        for visitor in list(self.inside):
            visitor.transport.abort()


class Visitor(asyncio.Protocol):
    """One connection: a request, an answer, the end."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._request = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Its time begins."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of another family
        self._end = asyncio.get_running_loop().call_later(DEADLINE_S, self.transport.abort)
        self._house.inside.add(self)
        if self._house.closed:
            self.transport.abort()
        elif len(self._house.inside) > VISITORS_MAX:
            self._reply(response(503, b"too many visitors, try again\n"))

    def data_received(self, data: bytes) -> None:
        """Until the head of a request is there; what comes after it is of no interest."""
        if self._answered:
            return
        self._request += data
        head, end, _ = self._request.partition(b"\r\n\r\n")
        if len(head) > REQUEST_BYTES_MAX:
            self._reply(response(431, b"the request is too long\n"))
        elif end:
            self._reply(self._house.answer(head))

    def connection_lost(self, error: Exception | None) -> None:
        """Its place is free."""
        self._end.cancel()
        self._house.inside.discard(self)

    def _reply(self, answer: bytes) -> None:
        self._answered = True
        self.transport.write(answer)
        self.transport.close()


class Eyes:
    """Serves the page of a run: `ask` gives its status, from any thread. `start()` returns once it listens.

    `bind`: "PORT" or "HOST:PORT"; loopback where no host is given, any free port for 0. ArgumentError if it is neither,
    PcclError if nobody can listen there.
    """

    def __init__(self, ask: Ask, bind: str) -> None:
        self.host, self.port = parse_bind(bind)
        self._gallery = Gallery(ask)
        self._house = House(self._answer)
        self.is_open = self.host != "localhost" and not is_loopback(self.host)  # to other hosts
        self._names = () if self.is_open else ("localhost", self.host)
        self._thread: LoopThread | None = None

    def start(self) -> None:
        """Listens, and serves until `close`."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            self._socket = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise PcclError(f"cannot serve HTTP at {self.host}, port {self.port}: {error}") from error
        self.port = self._socket.getsockname()[1]
        self._thread = LoopThread("pccl-eyes", self._setup, self._teardown)
        self._thread.start()

    @property
    def address(self) -> str:
        """For a browser."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    def close(self) -> None:
        """Ends; visitors are turned out. Idempotent."""
        if self._thread is not None:
            self._thread.stop()

    def __enter__(self) -> Eyes:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the loop's thread ------------------------------------------------------------------------------------

    def _setup(self) -> None:
        assert self._thread is not None
        loop = self._thread.loop
        serve = loop.create_server(lambda: Visitor(self._house), sock=self._socket, backlog=BACKLOG)
        self._serving = loop.create_task(serve)

    def _teardown(self) -> None:
        assert self._thread is not None
        self._thread.loop.run_until_complete(self._end())

    async def _end(self) -> None:
        server = await self._serving
        server.close()
        self._house.close()
        await server.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        return answer(head, self._gallery, self._names)


# -- pure ------------------------------------------------------------------------------------------------------


def answer(head: bytes, gallery: Gallery, names: tuple[str, ...] = ()) -> bytes:
    """The answer to a request, whose head is given without the empty line at its end.

    `names`: what the server may be called besides an IP address, if it is particular about that: on loopback it is, for
    a page from elsewhere whose name was made to mean 127.0.0.1 is not to read what is served here.
    """
    request, *fields = head.split(b"\r\n")
    words = request.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or not words[1].startswith(b"/"):
        return response(400, b"this is no request of HTTP/1\n")
    method, target, _ = words
    if method not in (b"GET", b"HEAD"):
        return response(405, b"only GET and HEAD\n", Allow="GET, HEAD")
    bare = method == b"HEAD"
    if names and not is_named(host_of(fields), names):
        return response(421, b"nobody of that name serves here\n", bare)
    found = gallery.show(target.partition(b"?")[0].decode("latin-1"))
    if found is None:
        return response(404, b"there are /, /status.json and /metrics\n", bare)
    kind, body = found
    return response(200, body, bare, kind)


def response(
    status: int, body: bytes, bare: bool = False, kind: str = "text/plain; charset=utf-8", **fields: str
) -> bytes:
    """The bytes of an answer; `bare`: without the body that is spoken of."""
    named = {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **fields}
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (b"" if bare else body)


def host_of(fields: list[bytes]) -> str:
    """Whom the request is for, without the port."""
    for field in fields:
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"host":
            text = value.strip().decode("latin-1").lower()
            return text.partition("]")[0].lstrip("[") if text.startswith("[") else text.partition(":")[0]
    return ""


def is_named(host: str, names: tuple[str, ...]) -> bool:
    """Whether it is one of the names, or an IP address, which nobody can make mean another."""
    if host in names:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_bind(text: str) -> tuple[str, int]:
    """ "9400" -> ("127.0.0.1", 9400); "[::]:9400" -> ("::", 9400)."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and f"[{host}]" not in text):
        raise ArgumentError(f"{text!r} is not where HTTP can be served: write PORT or HOST:PORT, [HOST]:PORT for IPv6")
    return host or "127.0.0.1", int(port)
