"""What a group's status says beyond its members: links as they are measured, decisions and losses in numbers."""

from __future__ import annotations

from unit.group_table import A, B, C, Table, V, group, suspect

from pccl import messages as m
from pccl.types import LOSS_UNKNOWN, Cause


def status(table: Table) -> m.GroupStatus:
    return table.machine.status(table.now)


def links(table: Table) -> dict[tuple[bytes, bytes], m.LinkStatus]:
    found = status(table)
    ids = [member.peer for member in found.members]
    return {(ids[link.sender], ids[link.receiver]): link for link in found.links}


def report(table: Table, sender: bytes, *reports: m.LinkReport, ops: int = 0, nbytes: int = 0) -> None:
    table.say(sender, m.Heartbeat(V, 0, table.machine.epoch, 0, ops, nbytes, reports))


def test_links_say_what_was_measured_each_way() -> None:
    table = group(A, B, C)
    assert len(links(table)) == 6
    assert all((link.rtt_us, link.bytes_per_s, link.loss_ppm) == (0, 0, LOSS_UNKNOWN) for link in links(table).values())
    report(table, A, m.LinkReport(B, 80_000, 50_000_000, 120))
    found = links(table)
    assert (found[A, B].rtt_us, found[A, B].bytes_per_s, found[A, B].loss_ppm) == (80_000, 50_000_000, 120)
    assert (found[B, A].bytes_per_s, found[B, A].state) == (0, "up")


def test_what_no_path_carries_still_is_a_message() -> None:
    table = group(A, B)
    report(table, A, m.LinkReport(B, (1 << 32) - 1, (1 << 64) - 1, LOSS_UNKNOWN))
    run = m.Status(V, "run", 1.0, 0, (status(table),))
    assert m.decode_at_peer(m.encode(run)) == run


def test_a_link_that_is_suspected_and_then_done_without() -> None:
    table = group(A, B, C, link_grace_s=2.0)
    table.say(A, suspect(B, Cause.RESET))
    assert links(table)[B, A].state == "suspected"
    table.wait(4.0, A, B, C)
    table.say(A, m.Frozen(V, 1, 0, {0: {}}, ()))
    table.say(B, m.Frozen(V, 1, 0, {0: {}}, ()))
    table.say(C, m.Frozen(V, 1, 0, {0: {}}, ()))
    found = links(table)
    via = [member.peer for member in status(table).members].index(C)
    assert (found[A, B].state, found[A, B].via) == ("broken", via)
    assert (found[A, C].state, found[A, C].via) == ("up", -1)


def test_of_very_many_members_no_links_are_shown() -> None:
    peers = [bytes([n]) * 16 for n in range(1, 34)]
    assert len(status(group(*peers)).members) == 33
    assert status(group(*peers)).links == ()


def test_ops_and_bytes_are_the_newest_that_a_member_has_told() -> None:
    table = group(A, B)
    report(table, A, ops=3, nbytes=100)
    report(table, A, ops=4, nbytes=150)
    member = next(member for member in status(table).members if member.peer == A)
    assert (member.ops, member.bytes) == (4, 150)


def test_decisions_and_losses_are_counted() -> None:
    table = group(A, B, C)
    table.say(C, m.Leave(V, "done"))
    table.wait(11.0, A)
    counts, losses = (dict(pairs) for pairs in (status(table).counts, status(table).losses))
    assert losses == {"leave": 1, "lease": 1}
    assert (counts["join"], counts["freeze"], counts["epoch"]) == (3, 2, 1)
    assert sum(counts.values()) == len(status(table).log)


def test_who_only_waited_is_no_loss() -> None:
    table = group(A, B)
    table.say(C, m.Join(V, "run", 0, C, ("10.0.0.3:1",), "host3", 1, 1))
    table.say(C, m.Leave(V, "no time"))
    assert dict(status(table).losses) == {}
    assert dict(status(table).counts)["leave"] == 1
