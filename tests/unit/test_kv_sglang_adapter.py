"""What SGLang's managers are made of: memory that KVArgs names, settings, the bootstrap server, the backend's name."""

from __future__ import annotations

import http.client
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pccl.errors import ArgumentError, Timeout
from pccl.kv.adapters.sglang_bootstrap import Server, fetch, register
from pccl.kv.adapters.sglang_layout import caches_of
from pccl.kv.adapters.sglang_settings import Rank, Settings, Topology
from pccl.kv.memory import Memory

DOUBLES = Path(__file__).parent.parent / "doubles"
BLOCKS = 6


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The double can be imported, and is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(DOUBLES))
    yield
    for name in list(sys.modules):
        if name.partition(".")[0] == "sglang" or name == "pccl.kv.adapters.sglang":
            del sys.modules[name]


def arrays(*widths: int) -> list[Any]:
    return [np.arange(BLOCKS * width, dtype=np.uint8).reshape(BLOCKS, width) for width in widths]


def args(kv: list[Any], aux: list[Any], states: dict[str, list[Any]] | None = None, **changes: Any) -> Any:
    """KVArgs."""

    def infos(of: list[Any]) -> list[list[int]]:
        return [[a.ctypes.data for a in of], [a.nbytes for a in of], [a[0].nbytes for a in of]]

    made = SimpleNamespace(page_size=4, engine_rank=0, state_types=list(states or {}))
    for name, of in (("kv", kv), ("aux", aux)):
        for which, found in zip(("data_ptrs", "data_lens", "item_lens"), infos(of), strict=True):
            setattr(made, f"{name}_{which}", found)
    for which, name in enumerate(("data_ptrs", "data_lens", "item_lens")):
        setattr(made, f"state_{name}", [infos(of)[which] for of in (states or {}).values()])
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_items_of_one_size_are_a_group_and_nothing_is_copied() -> None:
    kv, aux, mamba = arrays(32, 32, 48, 32), arrays(8, 16, 8), arrays(6, 10)
    caches = caches_of(args(kv, aux, {"mamba": mamba, "swa": arrays(32)}), "m", "auto")
    assert caches.pages == ["kv.0", "kv.2"] and caches.aux == ["aux.0", "aux.1"]
    assert caches.states == [["mamba.0.0", "mamba.0.1"], ["swa.1.0"]]
    groups = {group.name: group for group in caches.layout.groups}
    assert groups["kv.0"].layers == ("kv.0", "kv.1", "kv.3") and groups["kv.0"].block_tokens == 4
    assert groups["aux.0"].layers == ("aux.0", "aux.2") and groups["aux.0"].kind == "state"
    memory = Memory(caches.layout, caches.buffers)
    kv[2][5, 7] = 99
    assert memory.slabs(1, 0)[5, 7] == 99 and memory.block_count(1) == BLOCKS
    blocks = caches.page_blocks([1, 2]) | caches.other_blocks(3, [np.array([[4]]), None])
    assert {name: list(ids) for name, ids in blocks.items()} == {
        "kv.0": [1, 2], "kv.2": [1, 2], "aux.0": [3], "aux.1": [3], "mamba.0.0": [4], "mamba.0.1": [4], "swa.1.0": []
    }  # fmt: skip
    assert list(caches.other_blocks(None, None).values()) == [[], []]


def test_pools_of_several_sizes_are_groups_of_their_own() -> None:
    kv = [*arrays(32, 32), np.zeros((2 * BLOCKS, 32), np.uint8)]
    caches = caches_of(args(kv, arrays(8)), "m", "auto")
    memory = Memory(caches.layout, caches.buffers)
    assert caches.pages == ["kv.0", "kv.2"] and [memory.block_count(at) for at in range(2)] == [BLOCKS, 2 * BLOCKS]


def test_memory_that_is_none_is_refused_by_its_name() -> None:
    kv, aux = arrays(32, 32), arrays(8)
    for changes, named in (
        ({"kv_data_ptrs": [0, kv[1].ctypes.data]}, r"kv\.0 of KVArgs"),
        ({"kv_data_lens": [kv[0].nbytes, kv[1].nbytes - 1]}, r"kv\.1 of KVArgs"),
        ({"aux_item_lens": [0]}, r"aux\.0|bytes_per_block_layer"),
        ({"aux_item_lens": []}, "aux: 1 addresses, 1 lengths, 0 item lengths"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": None}, "page_size"),
    ):
        with pytest.raises(ArgumentError, match=named):
            caches_of(args(kv, aux, **changes), "m", "auto")
    caches = caches_of(args(kv, aux), "m", "auto")
    with pytest.raises(ArgumentError, match="1 components, KVArgs has 0"):
        caches.other_blocks(0, [np.array([1])])


def test_settings_are_refused_by_the_name_of_the_field() -> None:
    good = {"connect": {"address": "tcp://x"}}
    assert Settings.of(json.dumps(good)).deadline_s == 300.0
    for wrong, named in (
        ({}, "connect"),
        ({**good, "deadline_s": 0}, "deadline_s"),
        ({**good, "part_tokens": 0}, "part_tokens"),
        ({**good, "pol": "kv"}, "pol"),
    ):
        with pytest.raises(ArgumentError, match=named):
            Settings.of(json.dumps(wrong))
    for text in (None, "{"):
        with pytest.raises(ArgumentError, match="PCCL_SGLANG"):
            Settings.of(text)


def rank(dp: int = 0, tp: int = 0, **changes: Any) -> Rank:
    facts: dict[str, Any] = {
        "dp_size": 2, "tp_size": 2, "peer": f"{dp}{tp}" * 16, "pool": "kv", "page_size": 4, "kv_cache_dtype": "auto",
        "follows_room": True,
    }  # fmt: skip
    return Rank(dp_rank=dp, tp_rank=tp, **{**facts, **changes})


@pytest.fixture
def server() -> Any:
    made = Server("127.0.0.1", 0)
    yield made
    made.close()


def test_workers_are_told_when_all_are_there(server: Server) -> None:
    address = f"127.0.0.1:{server.port}"
    for dp in range(2):
        for tp in range(2):
            assert isinstance(fetch(address), str)
            register("127.0.0.1", server.port, rank(dp, tp), 5.0)
    found = fetch(address)
    assert isinstance(found, Topology) and found.dp_size == 2 and found.follow_bootstrap_room
    assert found.rank(1, 0) == rank(1, 0) and found.rank(2, 0) is None
    assert found.differs(rank()) == ""
    assert "page_size is 4 at the prefill server, 8 here" in found.differs(rank(page_size=8))
    register("127.0.0.1", server.port, rank(1, 0, peer="ab" * 16), 5.0)  # it has been restarted
    again = fetch(address)
    assert isinstance(again, Topology) and again.rank(1, 0) == rank(1, 0, peer="ab" * 16)


def test_who_does_not_fit_or_finds_nobody_is_told_why(server: Server) -> None:
    register("127.0.0.1", server.port, rank(), 5.0)
    with pytest.raises(Timeout, match=r"409.*another engine"):
        register("127.0.0.1", server.port, rank(tp=1, page_size=8), 0.1)
    server.close()
    with pytest.raises(Timeout, match=r"[Rr]efused"):
        register("127.0.0.1", server.port, rank(), 0.1)
    assert "efused" in str(fetch(f"127.0.0.1:{server.port}"))
    assert isinstance(fetch("no address:at all"), str)


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("PUT", "/route", {"Content-Length": "2"}, b"{}", 400),
        ("PUT", "/route", {"Content-Length": "4"}, b"\xff\x00{}", 400),
        ("PUT", "/route", {"Content-Length": str(1 << 30)}, b"{", 400),
        ("PUT", "/route", {"Content-Length": "-1"}, b"", 400),
        ("PUT", "/other", {"Content-Length": "2"}, b"{}", 400),
        ("GET", "/route", {}, b"", 503),
        ("GET", "/other", {}, b"", 404),
        ("GET", "/health?x=1", {}, b"", 200),
        ("POST", "/route", {"Content-Length": "0"}, b"", 501),
    ],
)
def test_whatever_is_asked_is_answered(
    server: Server, method: str, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5.0)
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    assert connection.getresponse().status == status
    connection.close()
    assert server.topology() is None


def test_the_backend_has_a_name_once_it_is_installed() -> None:
    from sglang.srt import server_args
    from sglang.srt.disaggregation import utils

    from pccl.kv.adapters import sglang as adapter

    adapter.install()
    adapter.install()
    assert server_args.DISAGG_TRANSFER_BACKEND_CHOICES.count("pccl") == 1
    backend = utils.TransferBackend("pccl")
    assert utils.get_kv_class(backend, utils.KVClassType.MANAGER) is adapter.PcclKVManager
    assert utils.get_kv_class(backend, utils.KVClassType.SENDER) is adapter.PcclKVSender
    assert utils.get_kv_class(utils.TransferBackend("fake"), utils.KVClassType.SENDER) is object
    with pytest.raises(ValueError, match="unsupported"):
        utils.get_kv_class(utils.TransferBackend("nixl"), utils.KVClassType.SENDER)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"device": "cuda"}, "cuda"),
        ({"pp_size": 2}, "pp_size is 2"),
        ({"enable_dp_attention": True}, "enable_dp_attention"),
    ],
)
def test_what_is_not_known_here_is_refused_before_anything_is_joined(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.server_args import ServerArgs

    from pccl.kv.adapters.sglang import PcclKVManager

    monkeypatch.setenv("PCCL_SGLANG", json.dumps({"connect": {"address": "tcp://127.0.0.1:1"}}))
    with pytest.raises(ArgumentError, match=named):
        PcclKVManager(args(arrays(32), arrays(8)), DisaggregationMode.DECODE, ServerArgs(**changes))
    with pytest.raises(ArgumentError, match="dcp_size"):
        PcclKVManager(args(arrays(32), arrays(8), dcp_size=2), DisaggregationMode.DECODE, ServerArgs())
