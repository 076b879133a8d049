"""world.py - a run and some peers between whom every message passes through the fuzzer: one case of control.py.

A case is a list of steps, which say what happened at the edges of the two state machines; replayed, they give the same.
Everything is real but the clock, the sockets and the network: the coordinator's ledger and run, sessions, engines.
What must hold of any case: nothing is raised but what the code there expects; what the coordinator says decodes; what
it has written can be read; its memory is bounded; and when the hostile ones are silent, two ordinary peers join the
run and commit an op.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from fuzz.puppet import RUN, Puppet, peer_id

from pccl import _native as native
from pccl import messages as m
from pccl.coordinator import snapshot
from pccl.coordinator.events import DialBack, Effect, Record, Send
from pccl.coordinator.ledger import Ledger
from pccl.coordinator.membership import LOG_MAX
from pccl.coordinator.roster import REMEMBERED_MAX
from pccl.coordinator.run import GROUPS_MAX, Run
from pccl.coordinator.settings import Settings
from pccl.coordinator.store import Saved
from pccl.coordinator.verdicts import FAULTS_MAX
from pccl.session import State
from pccl.types import Status

PUPPETS = 3
STRANGERS = 6  # indices below this may speak; those of puppets are theirs
PEERS_MAX = 32
LEASE_S = 5.0
STEP_S = 0.25
RESCUE_ROUNDS = 200
SIM_TURNS = 64

#: ["up", sender, bytes], ["down", puppet, bytes], ["tick", seconds], ["lost" | "back", sender],
#: ["dialled", sender, address or nil], ["advance" | "call" | "connected" | "leave" | "reborn", puppet], ["restart"]
Step = list[Any]


class Memory:
    """A Store that keeps what it is given."""

    where = "memory"

    def __init__(self) -> None:
        self.incarnation = 0
        self.groups: dict[int, bytes] = {}

    def begin(self, run: str) -> Saved:
        """As Store says."""
        del run
        self.incarnation += 1
        return Saved(self.incarnation, tuple(snapshot.decode(data, self.where) for data in self.groups.values()))

    def save(self, groups: Mapping[int, bytes]) -> None:
        """As Store says; and what was written can be read."""
        for data in groups.values():
            snapshot.decode(data, self.where)
        self.groups.update(groups)

    def close(self) -> None:
        """As Store says."""


class World:
    """One case."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sim = native.Sim(1)
        self.puppets = [Puppet(self.sim, index) for index in range(PUPPETS)]
        self.said: deque[tuple[int, bytes]] = deque(maxlen=256)  # by puppets, not heard yet
        self.dialling: deque[tuple[int, str]] = deque(maxlen=256)
        self.steps: list[Step] = []
        self._ids = [peer_id(index) for index in range(STRANGERS)]
        self._store = Memory()
        self._begin()
        for puppet in self.puppets:
            puppet.peer.start(self.now)
            self._gather(puppet)

    def _begin(self) -> None:
        settings = Settings(min_peers=2, lease_s=LEASE_S, peers_max=PEERS_MAX, dial_back=True)
        self.run = Run(RUN, settings, self.now)
        self.ledger = Ledger(self.run, self._store)
        self._carry_out(self.ledger.open(lambda: self.now))

    # -- steps ------------------------------------------------------------------------------------------------

    def apply(self, step: Step) -> None:
        """One thing happens."""
        self.steps.append(step)
        kind, *rest = step
        getattr(self, f"_on_{kind}")(*rest)

    def _on_up(self, sender: int, data: bytes) -> None:
        self._carry_out(self.ledger.bytes_from(self.now, self._ids[sender], data))

    def _on_down(self, index: int, data: bytes) -> None:
        puppet = self.puppets[index]
        puppet.take(self.now, data)
        self._after(puppet)

    def _on_tick(self, seconds: float) -> None:
        self.now += seconds
        self._carry_out(self.ledger.tick(self.now))
        for puppet in self.puppets:
            puppet.peer.on_tick(self.now)
        self._settle()

    def _on_lost(self, sender: int) -> None:
        self._carry_out(self.ledger.disconnected(self.now, self._ids[sender]))

    def _on_back(self, sender: int) -> None:
        self._carry_out(self.ledger.reconnected(self.now, self._ids[sender]))

    def _on_dialled(self, sender: int, address: str | None) -> None:
        self._carry_out(self.ledger.dialled(self.now, self._ids[sender], address))

    def _on_advance(self, index: int) -> None:
        self.puppets[index].peer.advance(self.now)
        self._after(self.puppets[index])

    def _on_call(self, index: int) -> None:
        self.puppets[index].call(int((self.now + 1.0) * 1e9))
        self._after(self.puppets[index])

    def _on_connected(self, index: int) -> None:
        self.puppets[index].peer.on_connected(self.now)
        self._after(self.puppets[index])

    def _on_leave(self, index: int) -> None:
        self.puppets[index].peer.leave(self.now)
        self._after(self.puppets[index])

    def _on_reborn(self, index: int) -> None:
        """The process ends, another one takes its place."""
        old = self.puppets[index]
        old.close()
        fresh = self.puppets[index] = Puppet(self.sim, index, (old.life + 1) % 256)
        self._ids[index] = fresh.id
        fresh.peer.start(self.now)
        self._gather(fresh)

    def _on_restart(self) -> None:
        self._begin()

    # -- consequences -----------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                data = m.encode(m.signed(effect.message, self.run.incarnation))
                assert m.decode_at_peer(data), "what the coordinator says does not decode"
                for puppet in self.puppets:
                    if puppet.id == effect.peer:
                        puppet.inbox.append(data)
            elif isinstance(effect, DialBack):
                if effect.peer in self._ids:
                    self.dialling.append((self._ids.index(effect.peer), effect.addresses[0]))
            else:
                assert isinstance(effect, Record)

    def _after(self, puppet: Puppet) -> None:
        puppet.turn(self.now)
        self._gather(puppet)

    def _settle(self) -> None:
        """The engines and their network, as far as they come at this moment."""
        for _ in range(SIM_TURNS):
            for puppet in self.puppets:
                self._after(puppet)
            if not self.sim.advance(int(self.now * 1e9)):
                break

    def _gather(self, puppet: Puppet) -> None:
        for message in puppet.peer.outbox:
            data = m.encode(message)
            assert m.decode_at_coordinator(data), "what a peer says does not decode"
            self.said.append((puppet.index, data))
        puppet.peer.outbox.clear()

    # -- what must hold ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Bounds, and what tools are told."""
        run = self.run
        assert len(run.groups) <= GROUPS_MAX
        assert sum(len(group.members) + len(group.waiting) for group in run.groups.values()) <= PEERS_MAX
        for group in run.groups.values():
            assert len(group.log) <= LOG_MAX
            for table, limit in (
                (group._gone, REMEMBERED_MAX),
                (group._judged, REMEMBERED_MAX),
                (group._faults, FAULTS_MAX),
                (group._epochs, PEERS_MAX + 1),
            ):
                assert len(table) <= limit, "the coordinator's memory grows"
            snapshot.decode(snapshot.encode(group.export()), "here")
        assert m.decode_at_peer(m.encode(run.status(self.now)))

    def rescue(self) -> None:
        """The hostile ones fall silent; two others come, and the run is of use to them."""
        self.check()
        self._silence()
        for puppet in self.puppets:
            puppet.close()
        self.puppets = [Puppet(self.sim, STRANGERS + n) for n in range(2)]
        self._ids = [peer_id(index) for index in range(STRANGERS + 2)]
        for puppet in self.puppets:
            puppet.peer.start(self.now)
            self._gather(puppet)
        assert self._honestly(lambda p: p.peer.state is State.MEMBER), "nobody can join"
        tokens = {puppet.index: puppet.call() for puppet in self.puppets}
        assert self._honestly(lambda p: tokens[p.index] in p.ended), "nothing is committed"
        assert all(puppet.ended[tokens[puppet.index]].status == Status.OK for puppet in self.puppets)
        self.check()

    def _silence(self) -> None:
        for _ in range(int(2 * LEASE_S / STEP_S)):
            self.now += STEP_S
            self._carry_out(self.ledger.tick(self.now))
        self.dialling.clear()
        self.said.clear()

    def _honestly(self, reached: Callable[[Puppet], bool]) -> bool:
        """Everything is passed on as it is, until that is so of all."""
        for _ in range(RESCUE_ROUNDS):
            while self.dialling:
                sender, address = self.dialling.popleft()
                self._on_dialled(sender, address)
            while self.said:
                self._on_up(*self.said.popleft())
            for puppet in self.puppets:
                while puppet.inbox:
                    puppet.take(self.now, puppet.inbox.popleft())
            if all(reached(puppet) for puppet in self.puppets):
                return True
            self._on_tick(0.02)
        return False

    def close(self) -> None:
        """Frees the engines."""
        for puppet in self.puppets:
            puppet.close()
        self.sim.free()
