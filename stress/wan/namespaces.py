"""Network namespaces of one run: made together, and gone with everything in them whatever happens.

Names are `pccl-wan-<pid>-<random>-<site>`; the pid is that of the program that made them. What a killed program left
behind is found by that and removed when the next one starts. Needs root and the `ip` of iproute2.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "pccl-wan"
DEVICE = "wan0"
DIRECTORY = Path("/run/netns")
TUN = Path("/dev/net/tun")
QUEUE_PACKETS = 5000
KILL_S = 5.0
# A connection hands down packets of what it sends in a millisecond, and up to 64 KiB where the round trip (in us)
# shifted right by this is 0. Not in kernels before 5.18.
LARGE_PACKETS = Path("/proc/sys/net/ipv4/tcp_tso_rtt_log")
LARGE_PACKETS_SHIFT = 24


class NamespaceError(RuntimeError):
    """The system refused something; the message has its words."""


def why_not() -> str | None:
    """Why this machine cannot emulate a WAN; None when it can."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("ip"):
        return "no ip command (iproute2)"
    if not (shutil.which("cc") and shutil.which("make")):
        return "no C compiler or make"
    if not TUN.exists():
        return "no /dev/net/tun"
    with contextlib.suppress(OSError):
        os.close(os.open(TUN, os.O_RDWR))
        probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
        return None if probe.returncode == 0 else "network namespaces are not allowed"
    return "/dev/net/tun cannot be opened"


def ip(*arguments: str, batch: Sequence[str] = ()) -> str:
    """Runs `ip`; with `batch`, these lines at once."""
    command = ["ip", *arguments, *(["-batch", "-"] if batch else [])]
    # a session of its own: Ctrl-C in the terminal must not end it half-way
    done = subprocess.run(
        command, input="\n".join(batch), capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode != 0:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def processes(namespace: str) -> list[int]:
    """Those whose network it is."""
    with contextlib.suppress(NamespaceError):
        return [int(pid) for pid in ip("netns", "pids", namespace).split()]
    return []


def kill_processes(namespace: str) -> None:
    """Ends whatever still runs inside, and waits until it has."""
    deadline = time.monotonic() + KILL_S
    while (pids := [pid for pid in processes(namespace) if pid != os.getpid()]) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def remove(namespace: str) -> None:
    kill_processes(namespace)
    with contextlib.suppress(NamespaceError):
        ip("netns", "del", namespace)


def existing(prefix: str = PREFIX) -> list[str]:
    """Names of the namespaces with this prefix."""
    return sorted(path.name for path in DIRECTORY.glob(f"{prefix}-*")) if DIRECTORY.exists() else []


def run_prefix() -> str:
    """How the names of all that this program makes begin."""
    return f"{PREFIX}-{os.getpid()}-"


def is_stale(name: str) -> bool:
    """Made by a program that is no more."""
    match = re.match(rf"{PREFIX}-(\d+)-", name)
    return match is not None and not is_alive(int(match[1]))


def sweep() -> list[str]:
    """Removes what programs that are no more left behind; returns the names."""
    stale = [name for name in existing() if is_stale(name)]
    for name in stale:
        remove(name)
    directories = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}-*") if is_stale(path.name)]
    for path in directories:
        shutil.rmtree(path, ignore_errors=True)
    return stale + [str(path) for path in directories]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts SIGINT and SIGTERM off until the end of the block, so that cleaning up is not itself cut short."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


class Namespaces:
    """One namespace per site, with the loopback up. A context manager."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.prefix = run_prefix() + secrets.token_hex(3)
        self._sites = list(sites)

    def name(self, site: str) -> str:
        return f"{self.prefix}-{site}"

    def path(self, site: str) -> Path:
        return DIRECTORY / self.name(site)

    def __enter__(self) -> Namespaces:
        try:
            with uninterrupted():
                ip(batch=[f"netns add {self.name(site)}" for site in self._sites])
                for site in self._sites:
                    ip("-n", self.name(site), batch=["link set lo up"])
        except BaseException:
            self.close()
            raise
        return self

    def configure(self, site: str, address: str, address6: str) -> None:
        """Gives the site's device its addresses and sends everything its way."""
        namespace = ("-n", self.name(site))
        # no address of its own accord: it would only send router solicitations
        ip(*namespace, "link", "set", DEVICE, "addrgenmode", "none", "txqueuelen", str(QUEUE_PACKETS))
        ip(
            *namespace,
            batch=[
                f"addr add {address}/32 dev {DEVICE}",
                f"addr add {address6}/128 dev {DEVICE} nodad",
                f"link set {DEVICE} up",
                f"route add default dev {DEVICE} src {address}",
                f"route add ::/0 dev {DEVICE} src {address6}",
            ],
        )

    def allow_large_packets(self, site: str) -> None:
        """Also of connections that send slowly; where the kernel can."""
        if LARGE_PACKETS.exists():
            ip("netns", "exec", self.name(site), "sh", "-c", f"echo {LARGE_PACKETS_SHIFT} > {LARGE_PACKETS}")

    def command(self, site: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs argv inside; the process is that of argv."""
        return ["ip", "netns", "exec", self.name(site), *argv]

    def close(self) -> None:
        with uninterrupted():
            for name in existing(self.prefix):
                remove(name)

    def __exit__(self, *_: object) -> None:
        self.close()
