"""pccl.metrics: what the collector makes of stats."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pccl.errors import ArgumentError, Closed, PcclError
from pccl.metrics import Collector, serve
from pccl.tally import Tally
from pccl.types import LOSS_UNKNOWN, EngineStats, LinkStats, Status

LINKS = [
    LinkStats(bytes([1] * 16), 4, 80_000, 5_000_000, 1500, 700, 900, 3),
    LinkStats(bytes([2] * 16), 1, 0, 0, LOSS_UNKNOWN, 10, 20, 0),
]


class Comm:
    """A communicator that only tells."""

    epoch, boundary, world_size = 3, 17, 2

    def __init__(self) -> None:
        self._runtime = SimpleNamespace(settings=SimpleNamespace(run="llama", group=2))
        self.closed = False
        self.tally = Tally()
        self.tally.ended(1, Status.OK)
        self.tally.ended(1, Status.OK)
        self.tally.ended(7, Status.ETIMEOUT)
        self.tally.waited("advance", 250_000_000)
        self.tally.waited("advance", 250_000_000)

    def stats(self) -> dict[str, Any]:
        if self.closed:
            raise Closed("the communicator is closed")
        engine = {name: number for number, name in enumerate(EngineStats.__slots__, 100)} | {"down_bytes_per_s": 0}
        links = [{name: getattr(link, name) for name in link.__slots__} for link in LINKS]
        return {**engine, "links": links, **self.tally.facts()}


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """{(name, labels besides run and group): value}"""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert (labels.pop("run"), labels.pop("group")) == ("llama", "2"), sample
            found[sample.name, tuple(labels.values())] = sample.value
    return found


def fetched(port: int) -> dict[tuple[str, tuple[str, ...]], float]:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return samples(answer.read().decode())


def test_what_is_served() -> None:
    comm: Any = Comm()
    with serve(comm, 0) as server:
        found = fetched(server.port)
        assert found["pccl_peer_up", ()] == 1 and found["pccl_peer_epoch", ()] == 3
        assert found["pccl_peer_ops_total", ("all_reduce", "ok")] == 2
        assert found["pccl_peer_ops_total", ("barrier", "etimeout")] == 1
        assert found["pccl_peer_waits_total", ("advance",)] == 2
        assert found["pccl_peer_wait_seconds_total", ("advance",)] == 0.5
        assert found["pccl_peer_link_sent_bytes_total", ("01010101",)] == 700
        assert found["pccl_peer_link_rtt_seconds", ("01010101",)] == pytest.approx(0.08)
        assert found["pccl_peer_link_loss_ratio", ("01010101",)] == pytest.approx(0.0015)
        assert found["pccl_peer_link_bytes_per_second", ("01010101",)] == 5e6
        assert found["pccl_peer_link_streams", ("02020202",)] == 1
        unknown = [name for name, labels in found if labels == ("02020202",)]
        assert not {"pccl_peer_link_rtt_seconds", "pccl_peer_link_loss_ratio"} & set(unknown)
        lines = {name for name, _ in found if "_line_" in name}
        assert lines == {"pccl_peer_line_up_bytes_per_second"}, "of the other nothing is known"
        assert found["pccl_peer_op_retries_total", ()] == comm.stats()["ops_retried"]
        comm.closed = True
        assert fetched(server.port) == {("pccl_peer_up", ()): 0}


def test_every_name_has_its_unit_and_no_name_comes_twice() -> None:
    comm: Any = Comm()
    names = [family.name for family in Collector(comm).collect()]
    assert len(names) == len(set(names)) and all(name.startswith("pccl_peer_") for name in names)
    assert not [name for name in names if name.endswith(("_us", "_ns", "_ppm", "_ms", "_per_s"))]


def test_a_port_that_is_taken_is_named() -> None:
    comm: Any = Comm()
    with serve(comm, 0) as server, pytest.raises(PcclError, match=rf"127\.0\.0\.1:{server.port}"):
        serve(comm, server.port)
    with pytest.raises(ArgumentError, match="port 70000"):
        serve(comm, 70000)
