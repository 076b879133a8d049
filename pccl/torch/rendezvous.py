"""rendezvous.py - how the ranks of a process group find each other: by the store of torch.distributed.

A *run* has one coordinator: that of PCCL_COORDINATOR, or one that rank 0 of the first group starts in its process; its
address and secret go through the store. A process group is a group of the run. Its ranks join one by one, at the
boundaries of those that are in already, and stop at the first boundary at which all are in: the same for all. Then the
store says which peer has which rank. What was written to the store is deleted by the last rank that has read it, so
that a group of the same name can be made on the same store later.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from pccl.communicator import Communicator
from pccl.config import group_of_environment
from pccl.coordinator.server import Coordinator
from pccl.errors import ArgumentError, Timeout
from pccl.joining import connect

__all__ = ["Deadline", "Member", "Run", "enter", "open_run", "store_at"]

#: Rank 0 of a run takes the coordinator with it; so long it waits for the others to leave first.
LINGER_S = 5.0
_LEASE_S = 10.0
_PAUSE_S = 0.001


@dataclass(frozen=True, slots=True)
class Member:
    """This process in a process group: `peers` has the ids of all, by rank."""

    comm: Communicator
    peers: tuple[bytes, ...]
    rank: int

    @property
    def size(self) -> int:
        """How many ranks the group was made with."""
        return len(self.peers)


@dataclass(slots=True)
class Run:
    """What is needed to join, "" where the environment says it; on rank 0 also the coordinator. `store`: where its
    groups are numbered.
    """

    store: Any
    address: str
    name: str
    secret: str
    base: int  # number of its first group
    coordinator: Coordinator | None = None
    groups: set[int] = field(default_factory=set)  # those that this process is in

    @property
    def is_local(self) -> bool:
        """Whether all are on this host."""
        return self.address.startswith("tcp://127.0.0.1:")

    def left(self, group: int) -> bool:
        """This process is out of a group; with the last one the coordinator ends, once nobody needs it any more. Gives
        whether it was the last.
        """
        self.groups.discard(group)
        if not self.groups:
            self._end()
        return not self.groups

    def _end(self) -> None:
        if self.coordinator is None:
            return
        coordinator, self.coordinator = self.coordinator, None
        until = time.monotonic() + LINGER_S
        while time.monotonic() < until and any(group.members for group in coordinator.status().groups):
            time.sleep(_PAUSE_S)
        coordinator.close()


class Deadline:
    """What is left of a timeout that several steps share."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        """At least a little, so that the step that comes too late says what it waited for."""
        return max(0.01, self._end - time.monotonic())

    def check(self, what: str) -> None:
        """Raises Timeout when it has passed."""
        if time.monotonic() > self._end:
            raise Timeout(f"{what} within {self._seconds:g} s")


def read(store: Any, key: str, deadline: Deadline) -> bytes:
    """The value of a key, once somebody has set it. Raises Timeout, which names the key."""
    try:
        store.wait([key], timedelta(seconds=deadline.left_s))
        return bytes(store.get(key))
    except (dist.DistStoreError, RuntimeError) as error:
        raise Timeout(f"the store does not have {key!r}: has every rank been started? ({error})") from error


def store_at(address: str, deadline: Deadline) -> Any:
    """The TCPStore at "host:port/prefix", which somebody else serves. Raises ArgumentError, Timeout."""
    endpoint, _, prefix = address.partition("/")
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise ArgumentError(f"a store's address is 'host:port/prefix', not {address!r}")
    try:
        store = TCPStore(
            host.strip("[]"),
            int(port),
            is_master=False,
            timeout=timedelta(seconds=deadline.left_s),
            wait_for_workers=False,
        )
    except (dist.DistStoreError, RuntimeError) as error:
        raise Timeout(f"there is no store at {endpoint}: {error}") from error
    return PrefixStore(prefix, store)


def open_run(store: Any, rank: int, size: int, deadline: Deadline) -> Run:
    """The run of the ranks that share a store; all call it. Raises Timeout, ArgumentError, or what a coordinator does
    that cannot listen.
    """
    first = group_of_environment()
    if first is not None:
        return Run(store, "", "", "", first)
    store.set(f"pccl/host/{rank}", _machine())
    coordinator = None
    if rank == 0:
        coordinator = _start(store, size, deadline)
    address, name, secret = json.loads(read(store, "pccl/run", deadline))
    return Run(store, address, name, secret, 0, coordinator)


def _start(store: Any, size: int, deadline: Deadline) -> Coordinator:
    hosts = {read(store, f"pccl/host/{rank}", deadline) for rank in range(size)}
    name, secret = f"torch-{secrets.token_hex(4)}", secrets.token_hex(16)
    bind = "tcp://127.0.0.1:0" if len(hosts) == 1 else _wildcard()
    coordinator = Coordinator(bind, run=name, secret=secret, lease_s=_LEASE_S, peers_max=max(1024, 16 * size))
    coordinator.start()
    address = coordinator.address if len(hosts) == 1 else f"tcp://{_own_host(store)}:{coordinator.port}"
    store.set("pccl/run", json.dumps([address, name, secret]))
    return coordinator


def enter(run: Run, store: Any, rank: int, size: int, op_timeout_s: float, deadline: Deadline) -> tuple[Member, int]:
    """Makes this process a member of a group of the run, with all other ranks; its number too. All of them call it."""
    if rank == 0:
        store.set("pccl/group", str(run.base + run.store.add("pccl/groups", 1) - 1))
    number = int(read(store, "pccl/group", deadline))
    comm = connect(
        run.address or None,
        run=run.name or None,
        secret=run.secret or None,
        group=number,
        timeout=deadline.left_s,
        listen="127.0.0.1:0" if run.is_local else None,
        op_timeout=op_timeout_s,
        too_few="raise",
    )
    try:
        return _complete(comm, store, rank, size, deadline), number
    except BaseException:
        comm.close()
        raise


def _complete(comm: Communicator, store: Any, rank: int, size: int, deadline: Deadline) -> Member:
    while comm.world_size != size:
        deadline.check(f"{comm.world_size} of {size} ranks have joined, not all")
        time.sleep(_PAUSE_S)
        comm.advance(deadline.left_s)
    keys = [f"pccl/peer/{other}" for other in range(size)]
    store.set(keys[rank], comm.peer_id.hex())
    peers = tuple(bytes.fromhex(read(store, key, deadline).decode()) for key in keys)
    if store.add("pccl/ready", 1) == size:
        hosts = [f"pccl/host/{other}" for other in range(size)]
        for key in ("pccl/run", "pccl/group", *keys, *hosts, "pccl/ready"):
            store.delete_key(key)
    return Member(comm, peers, rank)


# -- where this is ---------------------------------------------------------------------------------------------------


def _machine() -> str:
    """Equal for processes that reach each other by loopback: the same boot, the same network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


def _wildcard() -> str:
    return "tcp://[::]:0" if socket.has_ipv6 and Path("/proc/net/if_inet6").exists() else "tcp://0.0.0.0:0"


def _own_host(store: Any) -> str:
    """Under which name the others reach rank 0: that of the store, which is with rank 0, else this host's."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    host = str(getattr(store, "host", "") or socket.gethostname())
    return f"[{host}]" if ":" in host else host
