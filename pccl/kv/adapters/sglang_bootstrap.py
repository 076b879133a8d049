"""sglang_bootstrap.py - where D learns which peers P's workers are: a small HTTP server beside P, and its two clients.

    PUT /route   a worker of P: Rank; 409 if it is of another engine than those that are there
    GET /route   all of them: Topology; 503 until they are complete
    GET /health

As in SGLang it is for a network of one's own: it tells of peers, what they may do is pccl's to decide.
"""

from __future__ import annotations

import http.client
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

from pccl.errors import Timeout
from pccl.kv.adapters.sglang_settings import Rank, Topology

__all__ = ["Server", "fetch", "register"]

log = logging.getLogger("pccl.kv.sglang")

_BODY_MAX = 1 << 16
_ANSWER_MAX = 64 << 20
_ASK_S = 5.0
_FIRST_PAUSE_S = 0.05


class Server:
    """Listens until `close`. `port` 0: any; see `port`. OSError if it cannot."""

    def __init__(self, host: str, port: int) -> None:
        self._lock = threading.Lock()
        self._ranks: dict[tuple[int, int], Rank] = {}
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._http = _Http((host, port), Handler)
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, name="pccl-sglang-bootstrap", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Idempotent."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def put(self, rank: Rank) -> bool:
        """Whether it fits those that are there. A worker that comes again takes its own place."""
        key = rank.dp_rank, rank.tp_rank
        with self._lock:
            others = [one for at, one in self._ranks.items() if at != key]
            if others and others[0].shape() != rank.shape():
                return False
            self._ranks[key] = rank
            return True

    def topology(self) -> Topology | None:
        """All workers, once they are complete."""
        with self._lock:
            ranks = tuple(self._ranks[key] for key in sorted(self._ranks))
        found = Topology(ranks) if ranks else None
        return found if found is not None and found.complete else None


class _Http(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of one that has gone away, or is none: it hurts nobody else."""
        log.debug("a request of %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server_of: Server
    timeout = _ASK_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Of decoders, and who looks whether it is there."""
        path = self.path.partition("?")[0]
        if path == "/health":
            self._answer(200, b"OK")
        elif path != "/route":
            self._answer(404, b"no such path")
        elif (found := self.server_of.topology()) is None:
            self._answer(503, b"not all workers have registered")
        else:
            self._answer(200, msgspec.json.encode(found))

    def do_PUT(self) -> None:
        """Of workers."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/route" or not length.isdecimal() or int(length) > _BODY_MAX:
            self.close_connection = True  # its body is not read
            self._answer(400, b"PUT /route takes a body of 64 KiB at most")
            return
        try:
            rank = msgspec.json.decode(self.rfile.read(int(length)), type=Rank)
        except msgspec.DecodeError as error:
            self._answer(400, str(error).encode())
            return
        fits = self.server_of.put(rank)
        self._answer(*((200, b"OK") if fits else (409, b"workers of another engine are registered here")))

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: engines have logs of their own."""


def register(host: str, port: int, rank: Rank, timeout_s: float) -> None:
    """Tells the server of a worker; tries again until it is there. Blocks. Timeout names the last answer."""
    until, pause_s = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while True:
        try:
            status, answer = _ask(f"{host}:{port}", "PUT", msgspec.json.encode(rank))
            if status == 200:
                return
            why = f"{status} {answer[:200]!r}"
        except (OSError, http.client.HTTPException) as error:
            why = repr(error)
        if time.monotonic() + pause_s > until:
            raise Timeout(f"the bootstrap server {host}:{port} has not taken this worker: {why}")
        time.sleep(pause_s)
        pause_s *= 2


def fetch(address: str) -> Topology | str:
    """The workers of P, or why it does not tell. Blocks for a round trip, 5 s at most."""
    try:
        status, answer = _ask(address, "GET", None)
        return msgspec.json.decode(answer, type=Topology) if status == 200 else f"{status} {answer[:200]!r}"
    except (OSError, ValueError, http.client.HTTPException, msgspec.DecodeError) as error:
        return repr(error)


def _ask(address: str, method: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=_ASK_S)
    try:
        connection.request(method, "/route", body)
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_MAX)
    finally:
        connection.close()
