"""Engines that load from disk: directories appear whole or not at all, and hold the committed bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import deserialize
from unit.weights_chain import POOL, SCHEMA, Chain, Crash, crashes_after
from unit.weights_puller import Host, tensors_in
from unit.weights_update import Follower

from pccl.errors import ArgumentError
from pccl.weights import DamageError, LogError, MemoryShadow, Schema, SchemaError, Tensor, base, files
from pccl.weights.adapters import install
from pccl.weights.adapters.directory import DirectoryAdapter
from pccl.weights.adapters.slime import SlimeAdapter
from pccl.weights.fold import fold, plain
from pccl.weights.payload import Payload


@pytest.fixture
def follower() -> Follower:
    chain = Chain()
    for _ in range(5):
        chain.publish()
    return Follower(chain)


def committed(follower: Follower) -> dict[str, bytes]:
    return {t.name: follower.shadow.tensor(t.name).tobytes() for t in SCHEMA.tensors}


def versions(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# -- files --


@pytest.fixture
def checkpoint(follower: Follower, tmp_path: Path) -> Path:
    install(follower.update(), DirectoryAdapter(tmp_path, shard_bytes=1000))
    return tmp_path / "latest"


def test_the_library_reads_what_is_written(checkpoint: Path, follower: Follower) -> None:
    held = committed(follower)
    seen = {}
    for path in checkpoint.glob("*.safetensors"):
        for name, entry in deserialize(path.read_bytes()):
            seen[name] = bytes(entry["data"])
            assert tuple(entry["shape"]) == SCHEMA.tensors[SCHEMA.index[name]].shape
    assert seen == held


def test_what_the_library_writes_is_a_base(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    made = {
        "w": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
        "c": torch.arange(7, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "s": torch.tensor(5),
        "none": torch.empty(0, 3),
    }
    save_file(made, tmp_path / "model.safetensors")
    schema = base.schema_of(tmp_path)
    assert schema == Schema.of(sorted(made.items()))
    shadow = MemoryShadow(schema)
    base.load(tmp_path, shadow)
    for name, tensor in made.items():
        assert shadow.tensor(name).tobytes() == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_a_file_that_is_damaged_in_its_head_or_cut_short_is_refused_or_is_another(checkpoint: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))
    whole = path.read_bytes()
    names = set(base.safetensors_in(checkpoint))
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in range(head):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            found = base.safetensors_in(checkpoint)
        except (DamageError, SchemaError):
            continue
        for dtype, shape, data in found.values():  # another name, or another dtype of that size
            assert len(data) == Tensor("x", shape, dtype).nbytes
    for length in (0, 3, head - 1, head, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises((DamageError, LogError)):
            base.safetensors_in(checkpoint)
    path.write_bytes(whole)
    assert set(base.safetensors_in(checkpoint)) == names


# -- a directory of safetensors --


def test_a_directory_holds_the_version_and_the_link_says_which(follower: Follower, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text("{}")
    told: list[tuple[Path, int]] = []
    root = tmp_path / "root"
    adapter = DirectoryAdapter(
        root, lambda path: told.append((path, follower.shadow.at.version)), extra=[config], shard_bytes=1000, keep=2
    )
    for number in range(1, 5):
        install(follower.update(), adapter)
        latest = root / "latest"
        assert os.readlink(latest) == f"v{number}"
        found, metadata, kinds = tensors_in(latest)
        assert found == committed(follower) and metadata == {"format": "pt"}
        assert kinds["a"] == ("BF16", [40, 10]) and kinds["d"] == ("F8_E4M3", [1000]) and kinds["e"] == ("I64", [])
        assert (latest / "config.json").read_text() == "{}"
        loaded = MemoryShadow(SCHEMA)
        base.load(latest, loaded)
        assert follower.chain.holds(follower.shadow)
        assert all(loaded.tensor(t.name).tobytes() == follower.shadow.tensor(t.name).tobytes() for t in SCHEMA.tensors)
    assert told == [(root / f"v{n}", n - 1) for n in range(1, 5)]
    assert versions(root) == ["latest", "v3", "v4"]
    assert len(list((root / "v4").glob("*.safetensors"))) > 1


def test_nothing_is_left_of_a_version_that_was_not_written(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = DirectoryAdapter(tmp_path)
    install(follower.update(), adapter)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(LogError, match="No space"):
            install(follower.update(), adapter)
    assert versions(tmp_path) == ["latest", "v1"] and follower.shadow.at.version == 1
    install(follower.update(), adapter)
    assert os.readlink(tmp_path / "latest") == "v2"


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="keep"):
        DirectoryAdapter(tmp_path, keep=0)
    with pytest.raises(ArgumentError, match="first"):
        SlimeAdapter(tmp_path, first="dense")  # type: ignore[arg-type]


# -- numbered directories --


@pytest.mark.parametrize("first", ["full", "delta"])
def test_a_host_that_pulls_has_what_is_committed(follower: Follower, tmp_path: Path, first: Any) -> None:
    host, late = Host(committed(follower)), Host(committed(follower))
    seen: list[list[str]] = []
    adapter = SlimeAdapter(tmp_path, lambda root, n: seen.append(host.pull(root, n)), first=first)
    for number in range(1, 4):
        install(follower.update(), adapter)
        assert host.tensors == committed(follower) and follower.shadow.at.version == number
        assert (tmp_path / "latest").read_text() == f"weight_v{number:06d}"
    assert seen == [[f"{first} 1"], ["delta 2"], ["delta 3"]]
    late.pull(tmp_path, 3)
    assert late.tensors == committed(follower)


def test_numbers_have_no_gaps_where_versions_were_skipped(follower: Follower, tmp_path: Path) -> None:
    chain = follower.chain
    host = Host(committed(follower))
    adapter = SlimeAdapter(tmp_path, host.pull, first="delta")
    pieces = []
    for version, data in enumerate(chain.payloads[:3]):
        pieces.append(Payload(plain(Payload(data), SCHEMA, chain.arenas[version], POOL) or data))
    install(follower.update(fold(pieces, POOL)), adapter)
    install(follower.update(), adapter)
    assert follower.shadow.at.version == 4
    assert versions(tmp_path) == ["latest", "weight_v000001", "weight_v000002"]
    assert host.version == 2 and host.tensors == committed(follower)


def test_another_history_begins_with_a_whole_checkpoint(follower: Follower, tmp_path: Path) -> None:
    host = Host(committed(follower))
    for _ in range(2):
        install(follower.update(), SlimeAdapter(tmp_path, host.pull))
    other = Chain(seed=2)
    other.publish()
    again = Follower(other)
    seen: list[list[str]] = []
    install(again.update(), SlimeAdapter(tmp_path, lambda root, n: seen.append(host.pull(root, n))))
    assert seen == [["full 3"]] and host.tensors == committed(again)


def test_a_crash_at_any_byte_leaves_whole_directories_and_the_next_goes_on(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(follower.update(), SlimeAdapter(tmp_path / "0", first="delta"))
    base_bytes = {t.name: SCHEMA.view(follower.chain.arenas[0], n).tobytes() for n, t in enumerate(SCHEMA.tensors)}
    budget, crashed = 0, 0
    while True:
        root = tmp_path / f"{budget}x"
        one = Follower(follower.chain)
        install(one.update(), SlimeAdapter(root, first="delta"))
        host = Host(dict(base_bytes))
        with crashes_after(budget, monkeypatch) as left:
            try:
                install(one.update(), SlimeAdapter(root))
            except Crash:
                crashed += 1
        assert left[0] >= 0 or one.shadow.at.version == 1
        install(one.update(), SlimeAdapter(root))
        newest = max(int(path.name[8:]) for path in root.glob("weight_v??????"))
        host.pull(root, newest)
        assert host.tensors == committed(one)
        if left[0] >= 0:
            break
        budget += 97
    assert crashed > 5 and one.shadow.at.version == 3


def test_deltas_are_small(follower: Follower, tmp_path: Path) -> None:
    chain = Chain()
    chain.publish(share=0.001)
    one = Follower(chain)
    install(one.update(), SlimeAdapter(tmp_path, first="delta"))
    changed = np.count_nonzero(chain.arenas[0] != chain.arenas[1])
    assert (tmp_path / "weight_v000001" / "model.safetensors").stat().st_size < 1000 + 10 * changed
