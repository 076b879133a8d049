"""The emulated WAN as a context manager: namespaces, the router between them, and what runs at the sites."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from .namespaces import DEVICE, NamespaceError, Namespaces, sweep, uninterrupted, why_not
from .router import Router
from .topology import Action, Link, Site, Topology, link_settings

TERMINATE_S = 3.0


class Emulator:
    """`with Emulator(load("two_sites")) as wan: wan.popen("a", [...])`. At the end all that runs at sites is ended.

    `large_packets`: TCP hands down packets of up to 64 KiB at any rate, instead of what it sends in a millisecond; that
    costs a busy machine less.
    """

    def __init__(self, topology: Topology, memory_mb: int = 1024, large_packets: bool = False) -> None:
        self.topology = topology
        self._large_packets = large_packets
        self._links = dict(topology.links)
        self._sites = dict(topology.sites)
        self._namespaces = Namespaces(list(topology.sites))
        self._router = Router(topology.seed, memory_mb)
        self._processes: list[subprocess.Popen[Any]] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Emulator:
        if reason := why_not():
            raise NamespaceError(f"no WAN can be emulated here: {reason}")
        sweep()
        try:
            # the router goes first: without its devices the namespaces are empty
            self._stack.enter_context(self._namespaces)
            self._stack.enter_context(self._router)
            self._stack.callback(self._end_processes)
            for site in self._sites.values():
                self._add(site)
            for (a, b), link in self._links.items():
                self._apply(a, b, link)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, the router and the namespaces. May be called again."""
        with uninterrupted():
            self._stack.close()

    def _add(self, site: Site) -> None:
        path = str(self._namespaces.path(site.name))
        self._router.command("site", name=site.name, number=site.number, netns=path, device=DEVICE)
        self._namespaces.configure(site.name, site.address, site.address6)
        if self._large_packets:
            self._namespaces.allow_large_packets(site.name)
        self._apply_caps(site)

    def _apply_caps(self, site: Site) -> None:
        caps = {"up_mbit": site.up_mbit, "down_mbit": site.down_mbit}
        queues = {"up_queue_bytes": site.up_queue_bytes, "down_queue_bytes": site.down_queue_bytes}
        self._router.command("caps", site=site.name, **caps, **queues)

    def _apply(self, a: str, b: str, link: Link) -> None:
        values = {"delay_ms": link.delay_ms, "jitter_ms": link.jitter_ms, "rate_mbit": link.rate_mbit}
        more = {"loss": link.loss, "corrupt": link.corrupt, "queue_bytes": link.queue_bytes, "local": link.local}
        self._router.command("pair", **{"from": a, "to": b}, **values, **more)

    # -- sites -------------------------------------------------------------------------------------------------------

    @property
    def sites(self) -> list[str]:
        return list(self._sites)

    @property
    def socket_path(self) -> str:
        """Where `python -m stress.wan set|cut|heal|stats` find the router."""
        return str(self._router.socket_path)

    @property
    def router_pid(self) -> int:
        return self._router.pid

    def address(self, site: str, ipv6: bool = False) -> str:
        """The address the other sites know it by."""
        return self._sites[site].address6 if ipv6 else self._sites[site].address

    def namespace(self, site: str) -> str:
        """For `ip netns exec`."""
        return self._namespaces.name(site)

    def environment(self, site: str) -> dict[str, str]:
        """What a process at the site is told: who it is and who else there is."""
        peers = self.topology.peers
        rank = next((index for index, peer in enumerate(peers) if peer.name == site), -1)
        return {
            "WAN_SITE": site,
            "WAN_ADDRESS": self.address(site),
            "WAN_RANK": str(rank),
            "WAN_SIZE": str(len(peers)),
            "WAN_SITES": " ".join(f"{name}={self.address(name)}" for name in self._sites),
            "WAN_COORDINATOR": self.topology.coordinator.address,
            "WAN_SOCKET": self.socket_path,
        }

    def popen(
        self, site: str, argv: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a process there with `env` (default: the caller's) and `environment(site)`; options as of Popen."""
        environment = {**(os.environ if env is None else env), **self.environment(site)}
        command = self._namespaces.command(site, argv)
        process = subprocess.Popen(command, env=environment, start_new_session=True, **options)
        self._processes.append(process)
        return process

    def _end_processes(self) -> None:
        alive = [process for process in self._processes if process.poll() is None]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in alive:
            try:
                process.wait(TERMINATE_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    # -- links -------------------------------------------------------------------------------------------------------

    def link(self, a: str, b: str) -> Link:
        """As it is now, from a to b."""
        return self._links[a, b]

    def set_pair(self, a: str, b: str, both: bool = True, **settings: float) -> None:
        """Changes delay_ms or rtt_ms, jitter_ms, rate_mbit, queue_kb, loss, corrupt, local, both ways or not."""
        if unknown := settings.keys() - {*Link.__dataclass_fields__, "rtt_ms"}:
            raise TypeError(f"no setting of a link: {', '.join(sorted(unknown))}")
        checked = link_settings(settings, f"{a} - {b}")
        for pair in [(a, b), (b, a)] if both else [(a, b)]:
            now = {name: getattr(self._links[pair], name) for name in Link.__dataclass_fields__}
            link = Link(**(now | checked))
            self._apply(*pair, link)
            self._links[pair] = link

    def set_site(self, site: str, **caps: float) -> None:
        """Changes up_mbit, down_mbit, up_queue_kb or down_queue_kb."""
        now = {name: getattr(self._sites[site], name) for name in Site.__dataclass_fields__}
        changed = Site(**(now | caps))
        self._apply_caps(changed)
        self._sites[site] = changed

    def cut(self, a: str, b: str | None = None, both: bool = True) -> None:
        """Loses everything between two sites, under way and to come; without b, between a and all others."""
        self._each("cut", a, b, both)

    def heal(self, a: str, b: str | None = None, both: bool = True) -> None:
        """Undoes a cut; settings are as before."""
        self._each("heal", a, b, both)

    def _each(self, op: str, a: str, b: str | None, both: bool) -> None:
        for other in [b] if b else [site for site in self._sites if site != a]:
            for here, there in [(a, other), (other, a)] if both else [(a, other)]:
                self._router.command(op, **{"from": here, "to": there})

    def act(self, action: Action) -> None:
        """Does what a line of the script says."""
        if action.op == "caps":
            self.set_site(action.site, **action.settings)
        for a, b in action.pairs:
            if action.op == "set":
                self.set_pair(a, b, both=False, **action.settings)
            else:
                self._router.command(action.op, **{"from": a, "to": b})

    def stats(self) -> dict[str, Any]:
        """Counters since the start: {"pairs": {(a, b): {...}}, "sites": {a: {...}}, and of the router}."""
        answer = self._router.command("stats")
        answer["pairs"] = {(pair.pop("from"), pair.pop("to")): pair for pair in answer["pairs"]}
        answer["sites"] = {site.pop("site"): site for site in answer["sites"]}
        return answer
