"""scenarios_moving.py - named experiments with what peers fetch and push: from guests, across groups, over relays.

As scenarios.py: a few peers, and the one thing that goes wrong.
"""

from __future__ import annotations

from functools import partial
from random import Random

import numpy as np

from pccl._native import SimPath
from pccl.testing.cluster import Cluster
from pccl.testing.coordinator import DIALS_LOST, DIALS_REFUSED, MOMENTS
from pccl.testing.couriers import Couriers
from pccl.testing.faults import Faults, Swarm
from pccl.testing.guests import SharedState
from pccl.testing.moving import CHUNK_BYTES, equalise
from pccl.testing.program import SimPeer
from pccl.testing.stage import delay_ns, delay_s, every_kind, hit_relay, kill_links, scenario
from pccl.testing.traffic import Shape, Traffic, settled


def _coarse(cluster: Cluster, random: Random) -> None:
    """Much passes in these runs: larger segments, and what arrives within a moment is one turn. Groups may be small."""
    cluster.options.min_peers = 1
    cluster.options.segment_bytes = random.choice((1024, 4096))
    cluster.options.quantum_ns = random.choice((100_000, 500_000, 2_000_000))


# -- guests ---------------------------------------------------------------------------------------------------


def _with_guest(cluster: Cluster, faults: Faults, random: Random, members: int) -> tuple[SharedState, int]:
    """Members that share some MiB over lines so slow that it takes a while, and one that fetches it; its number."""
    cluster.options.path = SimPath(cluster.options.path.delay_ns, 0, bytes_per_s=random.choice((10 << 20, 30 << 20)))
    shape = Shape(boundaries=60, ops_max=2, gap_s=0.05, leave=False)
    state = SharedState(cluster, Traffic(cluster, shape), 17 << 20, random)
    for _ in range(members):
        cluster.add(state.member)
    cluster.form_with(members)
    faults.when("epoch", 0, then=lambda: cluster.add(state.guest, guest=True), after_s=random.uniform(0.02, 0.2))
    return state, members


@scenario
def guest_prefetches(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A guest fetches state that changes meanwhile, from members of which some come and go, and enters."""
    state, guest = _with_guest(cluster, faults, random, random.randint(2, 3))
    if random.random() < 0.5:
        faults.when("add", guest, then=lambda: cluster.add(state.member), after_s=random.uniform(0.0, 0.5))
    if random.random() < 0.5:
        faults.when("add", guest, then=lambda: faults.leave(1), after_s=random.uniform(0.0, 0.8))
    faults.mark("fetched", "prefetched", guest)


@scenario
def source_of_guest_dies(cluster: Cluster, faults: Faults, random: Random) -> None:
    """One or all of those that a guest fetches from are gone, or stand still, or their links break."""
    _, guest = _with_guest(cluster, faults, random, 3)
    for victim in random.sample(range(3), random.choice((1, 1, 2))):
        hit = random.choice(
            (
                partial(faults.crash, victim),
                partial(faults.freeze, victim, random.choice((0.3, 2.0))),
                partial(faults.cut, victim, guest, random.choice((0.5, 3.0))),
                partial(faults.lose_all, victim),
            )
        )
        faults.when("add", guest, then=hit, after_s=random.uniform(0.0, 1.0))
    faults.mark("fetched", "prefetched", guest)


@scenario
def guest_dies(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A guest is gone, or stands still, amid its fetch or when it enters; another one comes."""
    state, guest = _with_guest(cluster, faults, random, random.randint(2, 3))
    hit = random.choice((partial(faults.crash, guest), partial(faults.freeze, guest, random.choice((0.3, 2.0)))))
    moment = random.choice(("add", "enter"))
    faults.when(moment, guest, then=hit, after_s=random.uniform(0.0, 0.6 if moment == "add" else 0.02))
    faults.when("fault", then=lambda: cluster.add(state.guest, guest=True), after_s=random.uniform(0.0, 0.5))
    faults.mark("another fetched", "prefetched", guest + 1)


@scenario
def restart_with_guest(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The coordinator dies while a guest fetches, or enters: it fetches on or again, and enters."""
    _, guest = _with_guest(cluster, faults, random, random.randint(2, 3))
    restart = partial(faults.restart, random.choice((0.005, 0.3, 2.0)), random.choice(MOMENTS))
    moment = random.choice(("add", "add", "enter"))
    faults.when(moment, guest, then=restart, after_s=random.uniform(0.0, 0.6 if moment == "add" else 0.02))
    faults.mark("restarted", "log", "restart")


# -- transfers ------------------------------------------------------------------------------------------------


@scenario
def cancelled_fetches(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Fetches are taken back while their bytes arrive: once one has ended, its memory is nobody's but the caller's."""
    cluster.options.segment_bytes = random.choice((16 << 10, 256 << 10))
    cluster.options.path = SimPath(delay_ns(cluster), 0, bytes_per_s=random.choice((5_000_000, 20_000_000)))
    content = np.random.default_rng(cluster.seed).integers(0, 256, 1 << 20, np.uint8)

    async def program(peer: SimPeer) -> None:
        source = cluster.nodes[0].id
        if peer.index == 0:
            peer.moves.offer("much", content, chunk_bytes=256 << 10)
        for _ in range(5):
            await peer.all_reduce(np.ones(10, "int64"))
            if peer.index:
                fetching = peer.moves.fetch("much", np.zeros_like(content), [source], relay=peer.index == 1)
                await peer.compute(peer.random.uniform(0.0, 0.3))
                peer.moves.call_off(fetching)
                cluster.marks["cancelled"] += await settled(fetching) is not None
                await peer.moves.withdraw("much")
        await peer.barrier()

    peers = random.randint(2, 3)
    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    if random.random() < 0.3:
        faults.when("epoch", 1, then=lambda: faults.reset(0, 1, 0), after_s=random.uniform(0.1, 0.8))


@scenario
def drifting_state(cluster: Cluster, faults: Faults, random: Random) -> None:
    """State goes wrong at one peer after the other, and rots at one of those that offer it: it is found, and mended by
    what others have.
    """
    peers = random.randint(4, 5)
    chunks = random.randint(3, 40)
    content = np.random.default_rng(cluster.seed).integers(0, 256, chunks * CHUNK_BYTES - 7, np.uint8)

    async def program(peer: SimPeer) -> None:
        state = content.copy()
        while peer.boundary < 6:
            common = Random(f"{cluster.seed}:drift:{peer.boundary}")
            drifts, rots = common.sample(range(peers), 2)
            wrong = sorted(common.sample(range(chunks), common.randint(1, 3)))
            at = [chunk * CHUNK_BYTES + common.randrange(1000) for chunk in wrong]
            if peer.index == drifts:
                state[at] ^= 0xFF
            found, moved = await equalise(peer, state, at[0] if peer.index == rots else None)
            if peer.index == drifts:
                cluster.marks["mended"] += found == wrong
                if found != wrong or moved > len(wrong) * CHUNK_BYTES:
                    cluster.watch.broke("P8", f"chunks {wrong} drifted, {found} were found, {moved} bytes came")
            await peer.advance()

    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    if random.random() < 0.5:
        faults.when("epoch", 2, then=lambda: faults.noise(2.0, corrupt_ppm=5_000), after_s=2 * delay_s(cluster))


# -- across groups --------------------------------------------------------------------------------------------


def _groups(
    cluster: Cluster, random: Random, groups: int, peers: int, boundaries: int = 20, hidden_chance: float = 0.0
) -> Couriers:
    """Groups of up to so many peers, whose couriers deal with all others while their ops go on; some can only dial."""
    _coarse(cluster, random)
    one_way_ns = min(5_000_000, delay_ns(cluster))
    cluster.options.path = SimPath(one_way_ns, one_way_ns // 2, bytes_per_s=random.choice((0, 2_000_000, 20_000_000)))
    couriers = Couriers(cluster, Traffic(cluster, Shape(boundaries=boundaries, ops_max=2, gap_s=0.05, leave=False)))
    for group in range(groups):
        members = random.randint(1 if group else 2, peers)
        for _ in range(members):
            hidden = random.choice((DIALS_LOST, DIALS_REFUSED)) if random.random() < hidden_chance else 0
            cluster.add(couriers.member, hidden=hidden, group=group)
        cluster.form_with(members, group)
    return couriers


@scenario
def across_groups(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Members of several groups fetch from and push to each other; somebody goes or comes, or the coordinator dies."""
    groups = random.randint(2, 3)
    couriers = _groups(cluster, random, groups, 3)
    victim = random.randrange(len(cluster.nodes))
    hits = (
        partial(faults.crash, victim),
        partial(faults.leave, victim),
        partial(faults.freeze, victim, random.choice((0.3, 2.0))),
        partial(faults.lose_all, victim),
        partial(faults.restart, random.choice((0.005, 0.3, 2.0)), random.choice(MOMENTS)),
        partial(faults.join, couriers.member, group=random.randrange(groups)),
    )
    for hit in random.sample(hits, random.randint(0, 2)):
        faults.when("epoch", 0, then=hit, after_s=random.uniform(0.0, 1.0))


@scenario
def guests_deal(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Peers in no group fetch and are fetched from, across groups too, and enter or go; one of them may be hit."""
    groups = random.randint(1, 2)
    couriers = _groups(cluster, random, groups, 3)
    first, guests = len(cluster.nodes), random.randint(1, 3)
    for _ in range(guests):
        come = partial(cluster.add, couriers.guest, guest=True, group=random.randrange(groups))
        faults.when("epoch", 0, then=come, after_s=random.uniform(0.0, 0.3))
    victim = first + random.randrange(guests)
    hits = (
        partial(faults.crash, victim),
        partial(faults.leave, victim),
        partial(faults.freeze, victim, random.choice((0.3, 2.0))),
        partial(faults.cut, victim, 0, random.choice((0.5, 3.0))),
    )
    if random.random() < 0.5:
        faults.when("add", victim, then=random.choice(hits), after_s=random.uniform(0.0, 1.0))


@scenario
def frozen_counterpart(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Whom others fetch from and push to stands still: all of them end in time, called off or not."""
    couriers = _groups(cluster, random, 2, 3)
    errands = couriers.errands
    errands.sizes, errands.timeouts_s, errands.cancel_chance = (60_000, 150_000), (0.2, 0.6, 4.0), 0.4
    cluster.options.path = SimPath(1_000_000, 0, bytes_per_s=random.choice((400_000, 2_000_000)))
    for victim in random.sample(range(len(cluster.nodes)), random.randint(1, 2)):
        freeze = partial(faults.freeze, victim, random.choice((0.4, 1.0, 3.0)))
        faults.when("epoch", victim, then=freeze, after_s=random.uniform(0.05, 0.6))
    faults.mark("in time", "moved")


@scenario
def source_dies_relay_serves(cluster: Cluster, faults: Faults, random: Random) -> None:
    """What one peer offers is passed on while it comes; the source is hit: who has all of it serves all the others."""
    _coarse(cluster, random)
    cluster.options.path = SimPath(delay_ns(cluster), 0, bytes_per_s=random.choice((400_000, 2_000_000)))
    content = np.random.default_rng(cluster.seed).integers(0, 256, random.choice((60_000, 150_000)), np.uint8)
    traffic = Traffic(cluster, Shape(boundaries=20, ops_max=2, gap_s=0.05, leave=False))
    groups = [0, 0, *(random.randrange(3) for _ in range(3))]
    deliveries, nodes = cluster.watch.deliveries, cluster.nodes
    direct = random.random() < 0.5  # whether the source is asked for it by all
    waits_s = random.uniform(0.0, 0.3)

    async def program(peer: SimPeer) -> None:
        ops = peer.node.spawn(traffic)
        if peer.index == 0:
            peer.moves.offer("much", content, chunk_bytes=16 << 10)
        else:
            await peer.compute(waits_s * (peer.index - 1))
            known = [nodes[peer.index - 1].id, *([nodes[0].id] if direct and peer.index > 1 else [])]
            moving = peer.moves.fetch("much", np.zeros_like(content), known, relay=True, timeout=15.0)
            await settled(moving)
            is_gone = not nodes[0].alive or nodes[0].frozen or nodes[0].peer.error is not None
            cluster.marks["without the source"] += moving.error is None and is_gone
        await ops

    for group in groups:
        cluster.add(program, group=group)
    for group in set(groups):
        cluster.form_with(groups.count(group), group)

    def owe(what: str, facts: tuple[object, ...]) -> None:
        """Once the first relay has all of it, the others get it, whatever becomes of the source."""
        if what == "moved" and facts == (1, "much", "NoneType"):
            for moving in deliveries.moving:
                if moving.node.index > 1:
                    deliveries.owe(moving, nodes[1 : moving.node.index])

    cluster.observers.append(owe)
    hits = (faults.crash, faults.leave, partial(faults.freeze, seconds=3.0), partial(faults.isolate, seconds=4.0))
    hit = partial(random.choice(hits), 0)
    if random.random() < 0.3:
        faults.when("epoch", 1, then=hit, after_s=random.uniform(0.0, 0.6))
    else:
        faults.when("moved", 1, "much", "NoneType", then=hit, after_s=random.uniform(0.0, 0.1))
    faults.mark("served", "moved", 4, "much", "NoneType")


# -- over relays ----------------------------------------------------------------------------------------------


@scenario
def relayed_transfers(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Two peers that cannot reach each other fetch and push through a third, amid ops of all kinds; it dies, leaves or
    stands still, or their link is mended. Nothing of it is a reason for a transfer to fail.
    """
    _coarse(cluster, random)
    cluster.options.path = SimPath(min(5_000_000, delay_ns(cluster)), 0, bytes_per_s=random.choice((100_000, 400_000)))
    peers = random.choice((4, 4, 5))
    a, b = random.sample(range(peers), 2)
    traffic = Traffic(cluster, every_kind(boundaries=30))
    deliveries = cluster.watch.deliveries

    async def ends(peer: SimPeer, other: int) -> None:
        there = cluster.nodes[other]
        content = np.random.default_rng((cluster.seed, peer.index)).integers(0, 256, 50_000, np.uint8)
        peer.moves.offer(f"of {peer.index}", content, chunk_bytes=8 << 10)
        for turn in range(4):
            moving = peer.moves.fetch(f"of {other}", np.zeros_like(content), [there.id], timeout=30.0)
            deliveries.owe(moving, [there])
            cluster.marks["over a relay"] += await settled(moving) is None
            accepted = peer.moves.accept(f"{turn} to {peer.index}", np.zeros_like(content), 30.0)
            pushed = peer.moves.push(f"{turn} to {other}", content, there.id, 30.0)
            deliveries.owe(pushed, [there])
            await settled(pushed)
            await settled(accepted)

    async def program(peer: SimPeer) -> None:
        ops = peer.node.spawn(traffic)
        if peer.index in (a, b):
            await ends(peer, a + b - peer.index)
        await ops

    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    seconds = random.choice((90.0, 90.0, 4.5))
    both = random.random() < 0.7
    kill_links(faults, [(a, b)], seconds, random.uniform(0, 8) * delay_s(cluster), both=both)
    how = random.choice((faults.crash, faults.leave, partial(faults.freeze, seconds=random.choice((0.5, 2.0)))))
    faults.when("log", "dead link", then=lambda: hit_relay(cluster, how), after_s=random.uniform(0.0, 2.0))


# -- everything -----------------------------------------------------------------------------------------------


@scenario
def everything_moves(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Groups, guests, peers that cannot be dialled, links that are dead for long, relays, and a seed's mixture of all
    kinds of faults, while ops, fetches and pushes go on everywhere.
    """
    groups = random.randint(1, 3)
    couriers = _groups(cluster, random, groups, 4, random.randint(5, 30), hidden_chance=random.choice((0.0, 0.0, 0.3)))
    for _ in range(random.randint(0, 2)):
        come = partial(cluster.add, couriers.guest, guest=True, group=random.randrange(groups))
        faults.at(random.uniform(0.0, 0.5), come)
    peers = len(cluster.nodes)
    if random.random() < 0.3:
        a, b = random.sample(range(peers), 2)
        faults.at(random.uniform(0.0, 1.0), partial(faults.cut, a, b, 15.0))

    def join() -> None:
        group, guest = random.randrange(groups), random.random() < 0.5
        faults.join(couriers.guest if guest else couriers.member, guest=guest, group=group)

    Swarm(faults, random, join, window_s=random.choice((0.5, 2.0, 4.0)), peers=peers).draw()
