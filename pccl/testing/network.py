"""network.py - the control plane's network: one connection per peer to the coordinator, with delays, cuts and losses.

Like ZeroMQ over TCP, used as pccl/control.py does: in order; what is under way when a connection breaks is lost, and so
is what either side sends while there is none. While a direction is cut nothing passes and nothing is lost, until the
silence breaks the connection. The data plane's network is transports/sim_network.c.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from pccl.testing.clock import Clock, Timer, ns

UP = 0
DOWN = 1


@dataclass(slots=True)
class Ends:
    """Whom a connection tells what: data, that it opened, was lost. `served`: whether there is a coordinator."""

    to_peer: Callable[[bytes], None]
    to_coordinator: Callable[[bytes], None]
    peer_connected: Callable[[], None]
    coordinator_lost: Callable[[], None]
    served: Callable[[], bool]


@dataclass(slots=True)
class ControlOptions:
    """Times of the control network, in seconds."""

    delay_s: float = 0.001
    jitter_s: float = 0.0005
    reconnect_s: float = 0.02
    silence_s: float = 1.0


@dataclass(slots=True)
class Direction:
    """One way of a connection: what is under way, in order."""

    under_way: deque[tuple[Timer, bytes]] = field(default_factory=deque)
    held: deque[bytes] = field(default_factory=deque)
    last_due_ns: int = 0
    cut: bool = False


class Connection:
    """One peer's connection to the coordinator. `open`: a handshake has succeeded and nothing has broken it since."""

    def __init__(self, clock: Clock, random: Random, options: ControlOptions, ends: Ends) -> None:
        self.clock = clock
        self.random = random
        self.options = options
        self.ends = ends
        self.open = False
        self.closed = False
        self._ways = (Direction(), Direction())
        self._cut_number = 0
        self._dial()

    # -- sending ----------------------------------------------------------------------------------------------

    def send_up(self, data: bytes) -> None:
        """The peer sends; without a connection that is nothing."""
        if self.open and not self.closed:
            self._send(UP, data)

    def send_down(self, data: bytes) -> None:
        """The coordinator sends; without a connection that is nothing."""
        if self.open and not self.closed:
            self._send(DOWN, data)

    def _send(self, way: int, data: bytes) -> None:
        direction = self._ways[way]
        if direction.cut:
            direction.held.append(data)
            return
        due_ns = max(direction.last_due_ns, self.clock.now_ns + self._delay_ns())
        direction.last_due_ns = due_ns
        timer = self.clock.at(due_ns, lambda: self._arrive(way))
        direction.under_way.append((timer, data))

    def _arrive(self, way: int) -> None:
        direction = self._ways[way]
        if direction.cut:  # it arrives when the cut is healed
            return
        _, data = direction.under_way.popleft()
        (self.ends.to_coordinator if way == UP else self.ends.to_peer)(data)

    def _delay_ns(self) -> int:
        return ns(self.options.delay_s + self.random.random() * self.options.jitter_s)

    # -- faults -----------------------------------------------------------------------------------------------

    def cut(self, up: bool, down: bool) -> None:
        """Nothing passes in these directions from now on."""
        for way, cut in ((UP, up), (DOWN, down)):
            direction = self._ways[way]
            if not cut or direction.cut:
                continue
            direction.cut = True
            for timer, data in direction.under_way:
                timer.cancel()
                direction.held.append(data)
            direction.under_way.clear()
        self._cut_number += 1
        number = self._cut_number
        self.clock.after(self.options.silence_s, lambda: self._silence(number))

    def heal(self) -> None:
        """Everything passes again; what was held back goes on its way."""
        self._cut_number += 1
        for way in (UP, DOWN):
            direction = self._ways[way]
            direction.cut = False
            held, direction.held = direction.held, deque()
            for data in held:
                self._send(way, data)
        if not self.open and not self.closed:
            self._dial_later()

    def _silence(self, number: int) -> None:
        if number == self._cut_number and self.open:
            self.lose()

    def lose(self) -> None:
        """The connection breaks: what is under way is lost, the coordinator hears of it, the peer connects anew."""
        if not self.open or self.closed:
            return
        self._drop()
        self.ends.coordinator_lost()
        self._dial_later()

    def server_died(self) -> None:
        """The coordinator is gone: nobody is left to be told, and the peer connects anew until somebody serves."""
        if self.open:
            self._drop()
            self._dial_later()

    def close(self, told: bool = True) -> None:
        """The peer's process is gone; the coordinator hears of it after the delay, unless the way there is cut."""
        if self.closed:
            return
        self.closed = True
        was_open = self.open
        reachable = told and not self._ways[UP].cut
        for direction in (self._ways[DOWN],):
            self._clear(direction)
        if not was_open:
            return
        if reachable:
            due_ns = max(self._ways[UP].last_due_ns, self.clock.now_ns + self._delay_ns())
            self.clock.at(due_ns, self._tell_lost)
        else:
            self._drop()
            self.clock.after(self.options.silence_s, self.ends.coordinator_lost)

    def _tell_lost(self) -> None:
        if not self.open:  # it broke meanwhile
            return
        self.open = False
        self.ends.coordinator_lost()

    def _drop(self) -> None:
        self.open = False
        for direction in self._ways:
            self._clear(direction)

    def _clear(self, direction: Direction) -> None:
        for timer, _ in direction.under_way:
            timer.cancel()
        direction.under_way.clear()
        direction.held.clear()

    # -- connecting -------------------------------------------------------------------------------------------

    def _dial_later(self) -> None:
        self.clock.after(self.options.reconnect_s, self._dial)

    def _dial(self) -> None:
        """A handshake: there and back; in vain while a direction is cut."""
        if self.open or self.closed:
            return
        self.clock.at(self.clock.now_ns + 2 * self._delay_ns(), self._connected)

    def _connected(self) -> None:
        if self.open or self.closed or any(direction.cut for direction in self._ways):
            return
        if not self.ends.served():
            self._dial_later()
            return
        self.open = True
        self.ends.peer_connected()
