"""etcd.py - a run's state in etcd, and who of several coordinators leads it.

Leadership is etcd's: a key that exists once, bound to a lease that its owner keeps alive. Whoever makes the key leads.
Everything it writes is a transaction that compares the key's create revision with the one it made (fencing): a leader
that was replaced, and does not know it yet, writes nothing, so it decides nothing. Spoken is etcd's JSON gateway (v3).
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pccl.coordinator import snapshot
from pccl.coordinator.store import Saved
from pccl.errors import ArgumentError, StateError

#: The shortest that etcd grants with its usual election timeout.
LEASE_S = 2
KEEP_S = 0.5
CAMPAIGN_S = 0.2
REQUEST_S = 1.0
#: A leader that cannot reach etcd for so long gives up: another one may lead, and its peers shall find that one.
ALONE_S = 10.0
PORT = 2379
GROUPS = "groups/"


class Unreachable(StateError):
    """No member of etcd answers; it may do so later."""


class Client:
    """One request at a time, to whichever member answers."""

    def __init__(self, members: Sequence[tuple[str, int]]) -> None:
        self.members = list(members)

    def ask(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of POST /v3/`path`. Unreachable, or StateError if etcd refuses. Blocks for a second per member."""
        errors = []
        for _ in range(len(self.members)):
            host, port = self.members[0]
            try:
                status, body = self._post(host, port, path, json.dumps(request).encode())
            except (OSError, http.client.HTTPException) as error:
                errors.append(f"{host}:{port}: {error or type(error).__name__}")
            else:
                answer = _parsed(body, f"{host}:{port}")
                if status == 200:
                    return answer
                if status not in (500, 503, 504):
                    raise StateError(f"etcd at {host}:{port} refuses {path}: {answer.get('error', status)}")
                errors.append(f"{host}:{port}: {answer.get('error', status)}")
            self.members.append(self.members.pop(0))
        raise Unreachable(f"etcd does not answer: {'; '.join(errors)}")

    @staticmethod
    def _post(host: str, port: int, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(host, port, timeout=REQUEST_S)
        try:
            connection.request("POST", f"/v3/{path}", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class EtcdStore:
    """A Store in etcd. `begin` waits until this process leads, or `end` is set. `on_lost` is called, from any thread,
    once it does not lead any more.
    """

    def __init__(self, url: str, end: threading.Event, on_lost: Callable[[], None]) -> None:
        self._client = Client(members_of(url))
        self._keeper = Client(members_of(url))  # of the thread that keeps the lease alive
        self.where = url
        self._end = end
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._prefix = ""
        self._lease = "0"
        self._made = 0  # the create revision of our key; 0: we do not lead

    # -- as a Store -------------------------------------------------------------------------------------------

    def begin(self, run: str) -> Saved:
        """Waits for leadership, takes the state, writes the next incarnation."""
        self._prefix = f"pccl/{run}/"
        self._lease = self._granted()
        self._campaign()
        threading.Thread(target=self._keep, name="pccl-etcd", daemon=True).start()
        try:
            return self._take_up()
        except StateError:
            self.close()
            raise

    def save(self, groups: Mapping[int, bytes]) -> None:
        """Writes groups, all or none, if this process leads."""
        self._write({f"{GROUPS}{number}": data for number, data in groups.items()})

    def close(self) -> None:
        """Gives leadership back, so that nobody waits for the lease to run out. Idempotent."""
        if not self._closed.is_set():
            self._closed.set()
            self._made = 0
            self._try_to_revoke()

    # -- leadership -------------------------------------------------------------------------------------------

    def _granted(self) -> str:
        while True:
            try:
                return str(self._client.ask("lease/grant", {"TTL": LEASE_S})["ID"])
            except Unreachable:
                self._pause()

    def _campaign(self) -> None:
        """Makes the key as soon as nobody has it, and keeps the lease alive until then."""
        owner = f"{socket.gethostname()}, pid {os.getpid()}"
        kept = time.monotonic()
        while True:
            try:
                if time.monotonic() - kept > KEEP_S:
                    self._lease = self._lease if self._kept_alive() else self._granted()
                    kept = time.monotonic()
                self._made = self._tried(owner)
            except Unreachable:
                self._made = 0
            if self._made:
                return
            self._pause()

    def _tried(self, owner: str) -> int:
        """The create revision of the leader's key, if that is ours; it may be so by a request whose answer was lost."""
        transaction = self._if_made(0, [self._put("leader", owner.encode(), self._lease)])
        look = {"request_range": {"key": _b64(self._prefix + "leader")}}
        answer = self._client.ask("kv/txn", {**transaction, "failure": [look]})
        if answer.get("succeeded"):
            return int(answer["header"]["revision"])
        kvs = answer["responses"][0]["response_range"].get("kvs", [])
        return next((int(kv["create_revision"]) for kv in kvs if kv.get("lease") == self._lease), 0)

    def _pause(self) -> None:
        if self._end.wait(CAMPAIGN_S):
            self._try_to_revoke()
            raise StateError(f"{self.where}: ended before it led")

    def _kept_alive(self) -> bool:
        answer = self._keeper.ask("lease/keepalive", {"ID": self._lease})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def _keep(self) -> None:
        """The thread that keeps the lease alive."""
        reached = time.monotonic()
        while not self._closed.wait(KEEP_S):
            try:
                leads = self._kept_alive()
                reached = time.monotonic()
            except StateError:
                leads = time.monotonic() - reached < ALONE_S
            if not leads:
                self._lost()
                return

    def _lost(self) -> None:
        made, self._made = self._made, 0
        if made:
            self._on_lost()

    def _try_to_revoke(self) -> None:
        try:
            self._client.ask("lease/revoke", {"ID": self._lease})
        except StateError:
            return  # it ends by itself

    # -- the state --------------------------------------------------------------------------------------------

    def _take_up(self) -> Saved:
        end = self._prefix[:-1] + chr(ord(self._prefix[-1]) + 1)
        answer = self._client.ask("kv/range", {"key": _b64(self._prefix), "range_end": _b64(end)})
        found = {_text(entry["key"])[len(self._prefix) :]: entry for entry in answer.get("kvs", ())}
        where = f"{self.where}/{self._prefix}"
        version = int(_text(found["format"]["value"])) if "format" in found else snapshot.FORMAT
        if version > snapshot.FORMAT:
            raise snapshot.newer(where, version)
        groups = [
            snapshot.decode(base64.b64decode(entry["value"]), where)
            for name, entry in found.items()
            if name.startswith(GROUPS)
        ]
        incarnation = 1 + (int(_text(found["incarnation"]["value"])) if "incarnation" in found else 0)
        self._write({"incarnation": str(incarnation).encode(), "format": str(snapshot.FORMAT).encode()})
        return Saved(incarnation, tuple(sorted(groups, key=lambda state: state.group)))

    def _write(self, values: Mapping[str, bytes]) -> None:
        made = self._made
        puts = [self._put(name, value) for name, value in values.items()]
        if made and self._client.ask("kv/txn", self._if_made(made, puts)).get("succeeded"):
            return
        self._lost()
        raise StateError(f"{self.where}: another coordinator leads run {self._prefix[5:-1]!r}")

    def _if_made(self, revision: int, then: list[dict[str, Any]]) -> dict[str, Any]:
        """A transaction on the condition that the leader's key has this create revision; 0: does not exist."""
        key = _b64(self._prefix + "leader")
        unless = {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": str(revision)}
        return {"compare": [unless], "success": then}

    def _put(self, name: str, value: bytes, lease: str = "0") -> dict[str, Any]:
        entry = {"key": _b64(self._prefix + name), "value": base64.b64encode(value).decode(), "lease": lease}
        return {"request_put": entry}


def members_of(url: str) -> list[tuple[str, int]]:
    """Hosts and ports of "etcd://host:port,host:port"."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme != "etcd" or not rest:
        raise ArgumentError(f"{url!r} is no place for durable state: say etcd://host:2379,host:2379")
    members = []
    for part in rest.rstrip("/").split(","):
        host, colon, port = part.strip().rpartition(":")
        if not colon or part.endswith("]"):
            host, port = part.strip(), str(PORT)
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ArgumentError(f"{part!r} in {url!r} names no host and port")
        members.append((host.strip("[]"), int(port)))
    return members


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(value: str) -> str:
    return base64.b64decode(value).decode()


def _parsed(body: bytes, where: str) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise StateError(f"what answers at {where} is no etcd")
    return answer
