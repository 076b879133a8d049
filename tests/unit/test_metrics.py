"""What a Status is to Prometheus: every figure under its name, with labels that stay few."""

from __future__ import annotations

from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families
from unit.eyes_status import example, peer, pid

from pccl import messages as m
from pccl.coordinator import metrics
from pccl.types import short_id

A, B = (short_id(pid(n)) for n in (1, 2))


def samples(status: m.Status) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """As a scraper reads them; no sample is there twice."""
    text = metrics.exposition(status).decode()
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    read = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(read) == len(found)
    return read


def value(status: m.Status, name: str, **labels: str) -> float | None:
    return samples(status).get((name, tuple(sorted(labels.items()))))


def test_a_run_in_figures() -> None:
    status = example()
    assert value(status, "pccl_up_seconds") == 61.0
    assert value(status, "pccl_incarnation") == 2
    assert value(status, "pccl_malformed_messages_total") == 7
    assert value(status, "pccl_state_trouble") == 0
    assert value(structs.replace(status, trouble="disk full"), "pccl_state_trouble") == 1


def test_a_group_in_figures() -> None:
    status = example()
    wanted = {
        "pccl_members": 2,
        "pccl_waiting": 1,
        "pccl_epoch": 4,
        "pccl_boundary": 9,
        "pccl_joins_total": 5,
        "pccl_changes_total": 2,
        "pccl_restarts_total": 1,
        "pccl_evictions_total": 2,
        "pccl_plan_predicted_seconds": 1.5,
        "pccl_plan_expected_seconds": 1.75,
        "pccl_plan_achieved_seconds": 2.25,
    }
    assert {name: value(status, name, group="0") for name in wanted} == wanted
    assert value(status, "pccl_plan_info", group="0", algorithm="mesh") == 1


def test_losses_have_reasons_and_other_decisions_their_words() -> None:
    status = example()
    for reason in ("leave", "lost", "lease"):
        assert value(status, "pccl_losses_total", group="0", reason=reason) == 1
    assert value(status, "pccl_decisions_total", group="0", what="suspect") == 3
    assert value(status, "pccl_decisions_total", group="0", what="join") is None, "it has a metric of its own"


def test_members_and_links_by_short_ids() -> None:
    status = example()
    assert value(status, "pccl_member_ops_total", group="0", peer=B) == 20
    assert value(status, "pccl_member_bytes_total", group="0", peer=A) == 1000
    assert value(status, "pccl_member_boundary", group="0", peer=A) == 8
    known, broken = {"group": "0", "from": A, "to": B}, {"group": "0", "from": B, "to": A}
    assert value(status, "pccl_link_bytes_per_second", **known) == 50e6
    assert value(status, "pccl_link_rtt_seconds", **known) == 0.08
    assert value(status, "pccl_link_loss_ratio", **known) == 120e-6
    assert value(status, "pccl_link_streams", **known) == 3
    assert (value(status, "pccl_link_up", **known), value(status, "pccl_link_up", **broken)) == (1, 0)
    for name in ("pccl_link_bytes_per_second", "pccl_link_rtt_seconds", "pccl_link_loss_ratio"):
        assert value(status, name, **broken) is None, "what is not known is not said"


def test_two_peers_with_one_short_id_are_told_apart() -> None:
    group = example().groups[0]
    alike = structs.replace(peer(1, 1), peer=bytes([1] * 15 + [2]))
    status = structs.replace(example(), groups=(structs.replace(group, members=(peer(1, 0), alike)),))
    names = {dict(labels)["peer"] for name, labels in samples(status) if name == "pccl_member_ops_total"}
    assert names == {pid(1).hex(), alike.peer.hex()}


def test_nothing_that_a_peer_says_of_itself_is_a_label() -> None:
    text = metrics.exposition(example()).decode()
    assert "host1" not in text and "script" not in text
