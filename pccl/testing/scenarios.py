"""scenarios.py - named experiments: a few peers, one program, and the one thing that goes wrong.

A scenario is a function of (cluster, faults, random) that sets the stage; the seed varies sizes and moments. Each marks
(`faults.mark`) what it is named for when that really happens, so that a test can tell that it does.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from random import Random

import numpy as np

from pccl.errors import Timeout
from pccl.testing.cluster import Cluster
from pccl.testing.coordinator import DIALS_LOST, DIALS_REFUSED, MOMENTS
from pccl.testing.faults import Faults
from pccl.testing.network import ControlOptions
from pccl.testing.program import Program, SimPeer
from pccl.testing.stage import delay_ns, delay_s, every_kind, hit_relay, kill_links, scenario, start
from pccl.testing.traffic import Shape, Traffic, settled
from pccl.types import Status


def _reductions(boundaries: int = 4, algorithm: str = "ring", ops_max: int = 3) -> Shape:
    return Shape(
        boundaries=boundaries,
        ops_max=ops_max,
        kinds=("all_reduce",),
        counts=(1000, 2500, 5000),
        algorithms=(algorithm,),
    )


# -- losses ---------------------------------------------------------------------------------------------------


@scenario
def kill_during_reduce_scatter(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A peer dies while partial sums are under way: the survivors start again from their inputs."""
    peers = random.randint(3, 5)
    start(cluster, peers, _reductions())
    victim = random.randrange(peers)
    faults.when("epoch", 0, then=lambda: faults.crash(victim), after_s=random.uniform(2, 12) * delay_s(cluster))
    for index in range(peers):
        faults.mark("retried", "ended", index, "OK", 1)


@scenario
def kill_after_fin_before_commit(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Peer 0 has committed; the dead peer's FIN is still on its way to peer 1, and the freeze will be faster."""
    cluster.options.rank_by_index = True
    start(cluster, 3, Shape(boundaries=1, ops_max=1, kinds=("all_reduce",), counts=(300, 1000), algorithms=("ring",)))
    slow_ns = 10 * cluster.options.path.delay_ns + 20_000_000

    def slow_way() -> None:
        path = faults.path(2, 1)
        faults.set_path(2, 1, type(path)(delay_ns=slow_ns))

    def kill() -> None:
        cluster.marks["one committed, one waits"] += bool(cluster.nodes[1].ops.pending)
        faults.crash(2)

    faults.when("epoch", 2, then=slow_way, after_s=random.choice((0.0, 4 * delay_s(cluster))))
    faults.when("ended", 0, "OK", then=kill)


@scenario
def double_failure_during_change(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A second peer dies while the survivors of the first are being asked, or have just been told."""
    start(cluster, 5, _reductions())
    first, second = random.sample(range(5), 2)
    faults.when("epoch", 0, then=lambda: faults.crash(first), after_s=random.uniform(2, 8) * delay_s(cluster))
    after_s = random.choice((0.0, 0.001, 0.002, 0.004))
    faults.when("log", "freeze", then=lambda: faults.crash(second), after_s=after_s)
    faults.mark("frozen", "log", "freeze")


@scenario
def staggered_freeze(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The freeze reaches each survivor at another time, while their FINs go on crossing."""
    peers = random.randint(3, 5)
    start(cluster, peers, _reductions(boundaries=6))
    for node in cluster.nodes:
        node.connection.options = ControlOptions(delay_s=random.choice((0.0002, 0.002, 0.01, 0.03)))
    victim = random.randrange(peers)
    faults.when("epoch", victim, then=lambda: faults.crash(victim), after_s=random.uniform(2, 30) * delay_s(cluster))
    faults.mark("frozen", "log", "freeze")


@scenario
def leave_in_flight(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A peer leaves in good order, its ops unfinished."""
    start(cluster, 4, _reductions(boundaries=6))
    after_s = random.uniform(1, 10) * delay_s(cluster)
    faults.when("epoch", 3, then=lambda: faults.leave(3), after_s=after_s)
    faults.mark("in flight", "ended", 3, "ECLOSED")


# -- silence --------------------------------------------------------------------------------------------------


@scenario
def freeze_beyond_lease(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A process stands still for longer than its lease: the others go on without it."""
    peers = random.randint(3, 4)
    start(cluster, peers, _reductions())
    after_s = random.uniform(1, 10) * delay_s(cluster)
    faults.when("epoch", 1, then=lambda: faults.freeze(1, random.uniform(1.2, 3.0)), after_s=after_s)
    faults.mark("evicted", "log", "lease")


@scenario
def zombie_return(cluster: Cluster, faults: Faults, random: Random) -> None:
    """It wakes up with full sockets, long after the others have gone on; they are still busy."""
    traffic = start(cluster, 4, Shape(boundaries=40, ops_max=2, gap_s=0.2, leave=False))
    after_s = random.uniform(1, 10) * delay_s(cluster)
    faults.when("epoch", 2, then=lambda: faults.freeze(2, 1.5), after_s=after_s)
    faults.when("thaw", 2, then=lambda: cluster.add(traffic))
    faults.mark("returned", "log", "lease")


@scenario
def partition_of_control_plane(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A peer and the coordinator do not hear each other; its links are well."""
    start(cluster, 4, Shape(boundaries=30, ops_max=3, gap_s=0.03))
    seconds = random.choice((0.1, 0.4, 0.8, 2.0))
    up, down = random.choice(((True, True), (True, False), (False, True)))
    faults.when("epoch", 1, then=lambda: faults.cut_control(1, seconds, up=up, down=down), after_s=0.01)
    if random.random() < 0.5:
        faults.when("epoch", 3, then=lambda: faults.crash(3), after_s=random.uniform(0.01, 0.1))
    faults.mark("cut", "fault", "cut_control")


@scenario
def coordinator_stall(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The coordinator stands still; ops go on without it, and nobody loses his lease by that."""
    start(cluster, 3, Shape(boundaries=40, ops_max=3, gap_s=0.05))
    faults.when("epoch", 1, then=lambda: faults.stall(random.choice((0.3, 0.9, 2.5))), after_s=0.02)
    faults.mark("stalled", "stall")


# -- restarts of the coordinator ------------------------------------------------------------------------------


@scenario
def coordinator_restart(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The coordinator dies amid ops and comes back: they commit without it, and nobody has to enter anew."""
    start(cluster, random.randint(2, 4), Shape(boundaries=30, ops_max=4, gap_s=0.05))
    for _ in range(random.randint(1, 3)):
        seconds = random.choice((0.005, 0.1, 0.9, 2.5))
        faults.when("epoch", 1, then=partial(faults.restart, seconds), after_s=random.uniform(0.0, 0.6))
    faults.mark("restarted", "log", "restart")


@scenario
def restart_during_change(cluster: Cluster, faults: Faults, random: Random) -> None:
    """It dies while survivors are asked, or told: before it has written that, after, or when half of them know."""
    peers = random.randint(3, 5)
    start(cluster, peers, Shape(boundaries=25, ops_max=4, gap_s=0.05))
    first, second = random.sample(range(peers), 2)
    restart = partial(faults.restart, random.choice((0.005, 0.3, 2.0)), random.choice(MOMENTS))
    after_s = random.uniform(0.0, 0.3)
    if random.random() < 0.5:
        faults.when("epoch", first, then=restart, after_s=after_s)
        faults.when("epoch", first, then=lambda: faults.crash(first), after_s=after_s + 0.001)
    else:
        faults.when("epoch", first, then=lambda: faults.crash(first), after_s=after_s)
        faults.when("log", "freeze", then=restart, after_s=random.choice((0.0, 0.001, 0.002)))
    if random.random() < 0.3:
        faults.when("coordinator", "crash", then=lambda: faults.crash(second), after_s=random.uniform(0.0, 0.5))
    faults.mark("restarted in a change", "log", "restart")


@scenario
def restart_during_growth(cluster: Cluster, faults: Faults, random: Random) -> None:
    """It dies while members hold for a joiner, or while they are told of it; the joiner may die meanwhile."""
    traffic = start(cluster, 3, Shape(boundaries=40, ops_max=3, gap_s=0.03))
    faults.when("epoch", 0, then=lambda: faults.join(traffic), after_s=0.05)
    restart = partial(faults.restart, random.choice((0.005, 0.3, 2.0)), random.choice(MOMENTS))
    faults.when("log", "hold", then=restart, after_s=random.choice((0.0, 0.0005, 0.001, 0.002, 0.004)))
    if random.random() < 0.4:
        faults.when("coordinator", "crash", then=lambda: faults.crash(3), after_s=random.choice((0.0, 0.004, 0.1)))
    faults.mark("restarted in a growth", "log", "restart")


@scenario
def disk_full(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The coordinator cannot write what it decides: it says nothing of it, ops go on, and all is done once it can."""
    traffic = start(cluster, 4, Shape(boundaries=40, ops_max=3, gap_s=0.05))
    seconds = random.choice((0.3, 1.5, 4.0))
    faults.when("epoch", 0, then=lambda: faults.full_disk(seconds), after_s=0.05)
    wanted = random.choice((lambda: faults.join(traffic), lambda: faults.crash(1), lambda: faults.leave(2)))
    faults.when("fault", "full_disk", then=wanted, after_s=random.uniform(0.0, 0.2))
    if random.random() < 0.3:
        faults.when("fault", "full_disk", then=lambda: faults.restart(0.1), after_s=random.uniform(0.0, 0.3))
    faults.mark("could not write", "log", "state")


# -- links ----------------------------------------------------------------------------------------------------


@scenario
def flapping_link(cluster: Cluster, faults: Faults, random: Random) -> None:
    """All streams between two peers break again and again. Nobody may be evicted, nothing may be lost."""
    start(cluster, 3, _reductions(boundaries=12))
    gap_s = random.choice((1.0, 2.5, 8.0)) * delay_s(cluster)

    def flap(left: int) -> None:
        for _ in range(cluster.options.streams):
            faults.reset(0, 1, 0)
        if left:
            faults.at(gap_s, lambda: flap(left - 1))

    faults.when("epoch", 1, then=lambda: flap(40), after_s=2 * delay_s(cluster))
    faults.mark("reset", "fault", "reset")


@scenario
def forgetful_router(cluster: Cluster, faults: Faults, random: Random) -> None:
    """All connections of a live peer break at once, now and then again: what a dying process looks like, and is not."""
    peers = random.randint(2, 4)
    start(cluster, peers, _reductions(boundaries=12))
    victim = random.randrange(peers)
    after_s = random.uniform(0, 8) * delay_s(cluster)
    for _ in range(random.randint(1, 3)):
        faults.when("epoch", victim, then=lambda: faults.lose_all(victim), after_s=after_s)
        after_s += random.choice((0.01, 0.1, 1.0))
    faults.mark("lost", "log", "disconnected")


@scenario
def corrupt_wire(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Bits flip on their way, and bytes arrive twice: streams are closed, nothing wrong is believed."""
    start(cluster, 3, _reductions(boundaries=8))
    noise = {"corrupt_ppm": random.choice((5_000, 20_000)), "duplicate_ppm": random.choice((0, 5_000))}
    faults.when("epoch", 2, then=lambda: faults.noise(2.0, **noise), after_s=2 * delay_s(cluster))
    faults.mark("noise", "fault", "noise")


@scenario
def one_way_partition(cluster: Cluster, faults: Faults, random: Random) -> None:
    """What 0 says does not reach 1, everything else is well: a pause, no eviction."""
    start(cluster, 3, _reductions(boundaries=6))
    seconds = random.choice((0.05, 0.5, 2.0, 4.0))
    after_s = random.uniform(0, 8) * delay_s(cluster)
    faults.when("epoch", 1, then=lambda: faults.cut(0, 1, seconds, both=False), after_s=after_s)
    faults.mark("cut", "fault", "cut")


@scenario
def dead_link(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Nothing passes between two live peers for ever: a plan without their link, and every kind of op goes on."""
    peers = random.choice((3, 3, 4, 5))
    start(cluster, peers, every_kind())
    a, b = random.sample(range(peers), 2)
    kill_links(faults, [(a, b)], 90.0, random.uniform(0, 8) * delay_s(cluster))


@scenario
def dead_links(cluster: Cluster, faults: Faults, random: Random) -> None:
    """What is left of the links is a tree: some reach each other only over several relays."""
    peers = random.choice((4, 5))
    start(cluster, peers, every_kind())
    tree = {(random.randrange(max(0, k - 2), k), k) for k in range(1, peers)}
    cut = [(a, b) for b in range(peers) for a in range(b) if (a, b) not in tree]
    kill_links(faults, cut, 90.0, random.uniform(0, 8) * delay_s(cluster))


@scenario
def relay_dies(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Two peers reach each other through a third, and that one is gone, leaves, or stands still for a while."""
    start(cluster, 4, every_kind())
    a, b = random.sample(range(4), 2)
    kill_links(faults, [(a, b)], 90.0, random.uniform(0, 8) * delay_s(cluster))
    how = random.choice((faults.crash, faults.leave, partial(faults.freeze, seconds=0.5)))
    faults.when("log", "dead link", then=lambda: hit_relay(cluster, how), after_s=random.uniform(0.1, 1.0))


@scenario
def mended_link(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A dead link comes back: the next plan uses it again, and what was under way over the detour ends there."""
    peers = random.choice((3, 4))
    start(cluster, peers, every_kind(boundaries=60))
    a, b = random.sample(range(peers), 2)
    kill_links(faults, [(a, b)], random.uniform(3.0, 4.5), random.uniform(0.3, 0.6))

    def look(what: str, facts: tuple[object, ...]) -> None:
        cluster.marks["used again"] += what == "log" and facts[0] == "epoch" and "can be used again" in str(facts[2])

    cluster.marks["around"] = 0
    cluster.observers.append(look)


# -- reachability ---------------------------------------------------------------------------------------------


def _lose_streams(faults: Faults, cluster: Cluster, peers: int, random: Random) -> None:
    """Streams break, all of a peer now and then: they must form again, from the side that can dial."""

    def lose() -> None:
        victim = random.randrange(peers)
        faults.lose_all(victim) if random.random() < 0.3 else faults.reset(victim, random.randrange(peers))

    for _ in range(10):
        faults.when("epoch", 0, then=lose, after_s=random.uniform(0.0, 2.0))


@scenario
def behind_nat(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Nobody can dial one of the peers, by its id or not: it dials the others, joiners too, and is never evicted."""
    peers = random.randint(2, 4)
    hidden = random.randrange(peers)
    traffic = start(cluster, peers, every_kind(), {hidden: random.choice((DIALS_LOST, DIALS_REFUSED))})
    _lose_streams(faults, cluster, peers, random)
    faults.when("epoch", 0, then=lambda: faults.join(traffic), after_s=random.uniform(0.1, 1.0))
    faults.mark("found out", "log", "dials only")


@scenario
def joins_from_behind_nat(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Nobody can dial a joiner, at times the second of the kind: its links with members stand when its epoch begins."""
    peers = random.randint(2, 4)
    kind = random.choice((DIALS_LOST, DIALS_REFUSED))
    traffic = start(cluster, peers, every_kind(), {0: kind} if random.random() < 0.5 else None)
    faults.when("epoch", 0, then=lambda: cluster.add(traffic, hidden=kind), after_s=random.uniform(0.1, 1.0))
    faults.mark("entered", "epoch", peers)


@scenario
def both_behind_nat(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Neither of two peers can be dialled: a third, which both dial, passes their streams on, from the first epoch."""
    peers = random.randint(3, 5)
    hidden = random.sample(range(peers), random.randint(2, peers - 1))
    start(cluster, peers, every_kind(), {index: random.choice((DIALS_LOST, DIALS_REFUSED)) for index in hidden})
    _lose_streams(faults, cluster, peers, random)
    faults.mark("found out", "log", "dials only")


@scenario
def misjudged_reach(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The coordinator sees it all wrong from where it stands: what peers report turns their links round."""
    cluster.options.dial_back_lies = True
    peers = random.randint(3, 4)
    start(cluster, peers, every_kind(), {random.randrange(peers): random.choice((DIALS_LOST, DIALS_REFUSED))})
    faults.mark("turned", "log", "turned")


# -- growth ---------------------------------------------------------------------------------------------------


@scenario
def join_storm(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Many join at once, and some of them die in the doorway."""
    traffic = start(cluster, 2, Shape(boundaries=20, ops_max=3, gap_s=4 * delay_s(cluster)))
    for number in range(6):
        at_s = 0.005 + random.random() * 0.02
        faults.at(at_s, lambda: faults.join(traffic))
        if random.random() < 0.3:
            faults.at(at_s + random.random() * 0.02, partial(faults.crash, 2 + number))
    faults.mark("held", "log", "hold")


@scenario
def joiner_dies_while_held(cluster: Cluster, faults: Faults, random: Random) -> None:
    """The members have been asked to hold for somebody who is no more."""
    traffic = start(cluster, 3, Shape(boundaries=20, ops_max=3, gap_s=2 * delay_s(cluster)))
    faults.at(0.01, lambda: faults.join(traffic))
    faults.when("log", "hold", then=lambda: faults.crash(3), after_s=random.choice((0.0, 0.0005, 0.001, 0.003, 0.01)))
    faults.mark("held", "log", "hold")


@scenario
def loss_while_held(cluster: Cluster, faults: Faults, random: Random) -> None:
    """A member dies while a growth is asked for, or has just been announced: two epochs have ops in flight."""
    traffic = start(cluster, 4, Shape(boundaries=15, ops_max=4, gap_s=2 * delay_s(cluster)))
    faults.at(0.01, lambda: faults.join(traffic))
    after_s = random.choice((0.0, 0.001, 0.002, 0.004, 0.01))
    faults.when("log", "hold", then=lambda: faults.crash(1), after_s=after_s)
    faults.mark("held", "log", "hold")


# -- programs -------------------------------------------------------------------------------------------------


@scenario
def late_caller(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Peer 2 calls long after the others, one of whom dies meanwhile: its op has been judged before it was called."""
    traffic = start(cluster, 3, _reductions(boundaries=3, ops_max=2))
    cluster.add(_late(traffic, random.uniform(0.05, 0.3)))
    faults.when("epoch", 0, then=lambda: faults.crash(random.choice((0, 1))), after_s=random.uniform(0.01, 0.2))
    faults.mark("retried", "ended", 2, "OK", 1)


def _late(traffic: Traffic, seconds: float) -> Program:
    async def program(peer: SimPeer) -> None:
        await peer.compute(seconds)
        await traffic(peer)

    return program


@scenario
def mismatch(cluster: Cluster, faults: Faults, random: Random) -> None:
    """One peer calls an op with another count: the error names both, on every peer; the next op works."""
    cluster.watch.expected.add(Status.EMISMATCH)
    odd, algorithm = random.randrange(3), random.choice(("ring", "mesh"))

    async def program(peer: SimPeer) -> None:
        array = np.ones(500 + (peer.index == odd), "int64")
        error = await settled(peer.all_reduce(array, algorithm=algorithm))
        cluster.marks["mismatch"] += error is not None and "called" in error.message
        await peer.all_reduce(np.ones(10, "int64"))
        await peer.advance()
        await peer.all_reduce(np.ones(10, "int64"))

    for _ in range(3):
        cluster.add(program)
    cluster.form_with(3)


@scenario
def overdue_peer(cluster: Cluster, faults: Faults, random: Random) -> None:
    """One peer never calls: the others get Timeout, which names it, in time."""
    cluster.watch.overdue_expected = True
    absent = random.randrange(3)

    async def program(peer: SimPeer) -> None:
        if peer.index != absent:
            error = await settled(peer.all_reduce(np.ones(700, "int64"), timeout=random.choice((0.1, 1.0))))
            cluster.marks["overdue"] += error is not None and "not called" in error.message
        else:
            await peer.compute(8.0)
        await peer.advance()
        await peer.all_reduce(np.ones(10, "int64"))

    for _ in range(3):
        cluster.add(program)
    cluster.form_with(3)


@scenario
def given_up(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Who calls an op that another peer skips gives it up at once, while other ops are: it ends soon, everywhere."""
    cluster.options.deaf_ns = 2 * delay_ns(cluster)
    cluster.watch.expected.add(Status.ECANCELLED)
    peers = random.randint(2, 3)

    async def program(peer: SimPeer) -> None:
        for boundary in range(6):
            works = []
            for number in range(6):
                skipped = Random(f"{cluster.seed}:{boundary}:{number}").random() < 0.5
                if not skipped or peer.index != boundary % peers:
                    works.append(peer.all_reduce(np.ones(100 + number, "int64"), tag=f"part {number}"))
                    if skipped:
                        peer.give_up(works[-1])
                await peer.compute(peer.random.random() * delay_s(cluster))
            for work in works:
                if isinstance(await settled(work), Timeout):
                    cluster.watch.broke("P5", f"{work.describe()} was given up, and ended at its deadline")
            await peer.advance()

    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    faults.mark("given up", "ended", 0, "ECANCELLED")


@scenario
def probes_make_way(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Nobody calls anything for seconds: links are measured. Then ops come, and soon somebody dies."""
    peers = random.randint(3, 4)
    quiet_s = random.uniform(1.5, 6.0)
    cluster.options.path = replace(cluster.options.path, delay_ns=5_000_000, bytes_per_s=random.choice((10**6, 10**7)))
    traffic = Traffic(cluster, _reductions())
    for _ in range(peers):
        cluster.add(_late(traffic, quiet_s))
    cluster.form_with(peers)
    if random.random() < 0.5:
        faults.at(quiet_s + random.uniform(0.0, 1.0), lambda: faults.crash(0))
    for index in range(peers):
        faults.mark("measured", "down", index, "Measure")


@scenario
def skipped_op(cluster: Cluster, faults: Faults, random: Random) -> None:
    """One peer never calls what moves no bytes of its own, and is soon boundaries further: nobody may get it done."""
    cluster.watch.overdue_expected = True
    peers = random.randint(3, 4)
    absent, skipped, last = random.randrange(peers), random.randrange(3), random.randint(3, 30)

    async def program(peer: SimPeer) -> None:
        missed = None
        while peer.boundary < last:
            if peer.boundary == skipped and peer.index != absent:
                timeout = random.choice((0.1, 1.0))
                root = cluster.nodes[(absent + 1) % peers].id
                missed = (
                    peer.broadcast(np.ones(300, "int64"), root, tag="skipped", timeout=timeout)
                    if cluster.seed % 2
                    else peer.barrier(tag="skipped", timeout=timeout)
                )
            await settled(peer.all_reduce(np.ones(10, "int64"), tag=f"step {peer.boundary % 3}"))
            await peer.advance()
        if missed is not None:
            error = await settled(missed)
            cluster.marks["missed"] += error is not None and "not called" in error.message

    for _ in range(peers):
        cluster.add(program)
    cluster.form_with(peers)
    if peers == 4 and random.random() < 0.5:  # the epochs freeze before the op is overdue
        victim = (absent + 2) % peers
        faults.when("advance", absent, skipped + 1, then=lambda: faults.crash(victim), after_s=random.random() * 0.1)


@scenario
def too_few_peers(cluster: Cluster, faults: Faults, random: Random) -> None:
    """One of three dies where three are asked for: no op runs until a joiner fills the gap."""
    cluster.options.min_peers = 3
    cluster.watch.expected.add(Status.EFEW)
    traffic = start(cluster, 3, _reductions(boundaries=10))
    faults.when("epoch", 0, then=lambda: faults.crash(1), after_s=random.uniform(1, 10) * delay_s(cluster))
    faults.when("crash", 1, then=lambda: faults.join(traffic), after_s=random.choice((0.001, 0.5, 3.0)))
    faults.mark("refused", "ended", 0, "EFEW")


@scenario
def tag_order_shuffle(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Many tagged ops, in another order on every peer, small budgets, and a loss in the middle."""
    cluster.options.eager_bytes = 1024
    peers = random.randint(3, 4)
    shape = Shape(boundaries=5, ops_max=10, tag_chance=0.9, kinds=("all_reduce", "broadcast", "all_gather"))
    start(cluster, peers, shape)
    if random.random() < 0.5:
        faults.when("epoch", 0, then=lambda: faults.crash(1), after_s=random.uniform(1, 20) * delay_s(cluster))
    faults.mark("committed", "ended", 0, "OK")
