"""A prefill and a decode server of the double of SGLang, which speak with each other."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

WAIT_S = 30.0


def settings(address: str, secret: str, group: int, **extra: Any) -> str:
    """PCCL_SGLANG."""
    connect = {"address": address, "secret": secret, "listen": "127.0.0.1:0", "transport": "tcp", "group": group}
    return json.dumps({"connect": {**connect, "op_timeout": 20.0}, "deadline_s": 20.0, "part_tokens": 8, **extra})


def backend() -> Any:
    """What `--disaggregation-transfer-backend pccl` means, once it is installed."""
    from sglang.srt.disaggregation import utils

    from pccl.kv.adapters.sglang import install

    install()
    return utils.TransferBackend("pccl")


class Servers:
    """P and D."""

    def __init__(self, p: Any, d: Any) -> None:
        self.p, self.d = p, d
        self._room = 1 << 40

    def begin(self, rid: str, prompt: list[int], prefix: int = 0) -> tuple[Any, Any]:
        """A router sends a request to both."""
        self._room += 1
        d = self.d.add(rid, prompt, self.p.address, self._room, prefix)
        return self.p.add(rid, prompt, self._room), d

    def until(self, what: Callable[[], Any], *servers: Any) -> None:
        """Steps both, or these, until something is so."""
        end = time.monotonic() + WAIT_S
        while not what():
            assert time.monotonic() < end, "it did not happen"
            for server in servers or (self.p, self.d):
                server.step()

    def ended(self, *rids: str) -> None:
        """At both."""
        self.until(lambda: all(rid in self.p.results and rid in self.d.results for rid in rids))

    def free(self) -> None:
        """Nobody holds anything, and nothing was written to what was given back."""
        for server in (self.p, self.d):
            for memory, manager in zip(server.memories, server.managers, strict=True):
                memory.assert_free()
                assert not any(manager.pool.busy(group.name).size for group in manager.pool.layout.groups)


@contextmanager
def servers(
    cluster: Any,
    kinds: tuple[str, ...] = (),
    page: int = 4,
    chunk: int = 8,
    p: dict[str, Any] | None = None,
    d: dict[str, Any] | None = None,
    p_args: dict[str, Any] | None = None,
    d_args: dict[str, Any] | None = None,
    d_page: int | None = None,
) -> Iterator[Servers]:
    """`p`, `d`: more settings; `p_args`, `d_args`: of ServerArgs."""
    chosen = backend()  # the schedulers take names from what this changes
    from sglang.srt.engine import Decode, Prefill
    from sglang.srt.server_args import ServerArgs

    coordinator = cluster.coordinator(1, form_peers=1)
    with ExitStack() as stack:
        made = []
        for number, (extra, args) in enumerate(((p, p_args), (d, d_args))):
            os.environ["PCCL_SGLANG"] = settings(coordinator.address, cluster.secret, 10 * number, **(extra or {}))
            given = ServerArgs(disaggregation_bootstrap_port=0, **(args or {}))
            if number == 0:
                made.append(Prefill(chosen, given, kinds, page, chunk))
            else:
                made.append(Decode(chosen, given, kinds, d_page or page))
            stack.callback(made[-1].close)
        yield Servers(*made)
