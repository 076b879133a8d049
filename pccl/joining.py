"""`connect`: from what the user says to a communicator that is a member of its run.

Its arguments are those of `settings_from` (config.py), which checks them and says what is taken from the environment.
"""

from __future__ import annotations

import functools
import inspect
import secrets
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pccl import _native, descriptors, keys
from pccl.addresses import advertised
from pccl.communicator import Communicator
from pccl.config import Settings, settings_from
from pccl.control import Control
from pccl.entering import keys_of
from pccl.errors import PcclError
from pccl.runtime import Runtime
from pccl.trace.engine import TracedEngine
from pccl.trace.recorder import Recorder

__all__ = ["connect"]

P = ParamSpec("P")
A = TypeVar("A")
R = TypeVar("R")


def _takes(make: Callable[P, A]) -> Callable[[Callable[[A], R]], Callable[P, R]]:
    """The function gets what `make` makes of its caller's arguments, and shows the signature of `make` as its own."""

    def decorate(function: Callable[[A], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return function(make(*args, **kwargs))

        own = inspect.signature(function)
        shown = inspect.signature(make).replace(return_annotation=own.return_annotation)
        vars(call)["__signature__"] = shown
        return call

    return decorate


@_takes(settings_from)
def connect(settings: Settings) -> Communicator:
    """Joins a run and returns its communicator; blocks until the first epoch, at most `timeout` seconds. Ctrl-C
    interrupts.

    `address`: the coordinator's, "tcp://host:29400"; of several that stand by for each other all, separated by commas.
    `run`, `secret`: must equal the coordinator's. `token`: instead of the secret, what `pccl token` made of it; it must
    hold when this is called, and no longer. `group`: the peers that reduce together. These fall back to
    PCCL_COORDINATOR, PCCL_RUN, PCCL_SECRET, PCCL_TOKEN and PCCL_GROUP, `listen` to PCCL_LISTEN and `advertise` to
    PCCL_ADVERTISE. `listen`: numeric host and port of the one port that this peer opens ("[::]:0": all interfaces, any
    port). `advertise`: "host:port" or "host" under which the others reach it, if that differs. `congestion`: TCP
    congestion control to ask for ("bbr"). `too_few`: what `advance()` does when fewer than the run's minimum are left:
    "wait" for joiners or "raise" TooFewPeers. `op_timeout`: default deadline of an op, in seconds. `transport`: "tls"
    (TCP with TLS 1.3), "auto" (plain: shared memory between peers of one host, else TCP) or "tcp" (plain); all peers of
    a run must use TLS, or none. By default "auto" on one host (loopback addresses) and without a secret, else "tls";
    `insecure` (PCCL_INSECURE=1) makes it "auto". `tls`: (ca, cert, key), paths of PEM files by which peers prove
    themselves (PCCL_TLS_CA, PCCL_TLS_CERT, PCCL_TLS_KEY); without them the secret does. `enter`: False: return as soon
    as the run knows this peer, which is a guest: it can fetch from the members while these go on, and is one of them
    after `enter()` or `join_state()`. `trace` (PCCL_TRACE): a directory in which this peer writes down its ops, waits
    and epochs, for `pccl trace`: the newest 128 MiB. For tests, with `fault_seed`, "faulty+tcp".

    `environ`: read instead of os.environ.

    Raises ArgumentError, ResourceError (no file descriptors), TlsMissing, Timeout, AuthError, ProtocolError,
    CoordinatorLost, or PcclError when it cannot listen.
    """
    descriptors.make_sure(descriptors.PEER, "a peer")
    begin = time.monotonic()
    run_keys = keys_of(settings)
    peer_id = secrets.token_bytes(16)
    trace = Recorder(settings.trace, settings.run, settings.group, peer_id) if settings.trace else None
    engine = _listen(settings, run_keys, peer_id, trace)

    def control_of(runtime: Runtime) -> Control:
        return Control(
            settings.coordinator,
            settings.run,
            run_keys,
            settings.group,
            engine,
            [advertised(address, engine.port) for address in settings.advertise],
            runtime.describe,
            runtime.on_op,
            runtime.on_view,
            guest=not settings.enter,
            on_error=runtime.transfers.on_error,
            on_contacts=runtime.transfers.on_contacts,
        )

    runtime = Runtime(settings, engine, control_of, run_keys.data, trace)
    try:
        runtime.start(max(0.0, settings.join_timeout - (time.monotonic() - begin)))
    except BaseException:
        runtime.close(timeout=1.0)
        raise
    return Communicator(runtime)


def _listen(settings: Settings, run_keys: keys.RunKeys, peer_id: bytes, trace: Recorder | None) -> _native.Engine:
    """An engine at the first address that works."""
    make = _native.Engine if trace is None else functools.partial(TracedEngine, recorder=trace)
    for address in settings.listen[:-1]:
        try:
            return make(_config(settings, run_keys, peer_id, address))
        except PcclError:
            continue
    return make(_config(settings, run_keys, peer_id, settings.listen[-1]))


def _by_secret(settings: Settings) -> bool:
    return "tls" in settings.transport and settings.tls is None


def _config(settings: Settings, run_keys: keys.RunKeys, peer_id: bytes, listen: str) -> _native.EngineConfig:
    return _native.EngineConfig(
        peer_id=peer_id,
        run=keys.run_id(settings.run),
        key=run_keys.data,
        transport=settings.transport,
        listen=listen,
        congestion=settings.congestion,
        fault_seed=settings.fault_seed,
        psk=run_keys.tls if _by_secret(settings) else b"",
        tls_files=(settings.tls.ca, settings.tls.cert, settings.tls.key) if settings.tls else None,
    )
