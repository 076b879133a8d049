"""Weights without a network: what a payload leads to, what is refused, and what a crash at any byte leaves."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.weights_chain import KEY, POOL, SCHEMA, Chain, Crash, crashes_after

from pccl.cli.weights import command
from pccl.errors import ArgumentError
from pccl.weights import codec, files
from pccl.weights.certificate import SigningKey, Version
from pccl.weights.codec import DeltaError
from pccl.weights.digests import leaf, merkle_root, strong
from pccl.weights.errors import DamageError, LineageError, LogError, SchemaError
from pccl.weights.files import Growing
from pccl.weights.fold import fold, plain
from pccl.weights.gather import gather
from pccl.weights.log import DeltaLog
from pccl.weights.payload import Payload, Reader
from pccl.weights.schema import PACK_BELOW, Schema, Tensor
from pccl.weights.shadow import FileShadow, MemoryShadow, Staged
from pccl.weights.stage import Stage
from pccl.weights.write import write

QUICKLY = settings(max_examples=60, suppress_health_check=list(HealthCheck))
REFUSED = (DamageError, DeltaError, SchemaError)


def staged(shadow: Any, data: bytes, onto: Staged | None = None, public: bytes | None = KEY.public) -> Staged:
    return Stage(shadow, POOL, onto, None).finish(Payload(data), public)


def at(chain: Chain, version: int) -> MemoryShadow:
    shadow = MemoryShadow(SCHEMA)
    chain.begin(shadow, version)
    return shadow


def chain_of(versions: int, seed: int = 1, codecs: str = "auto") -> Chain:
    chain = Chain(seed)
    for _ in range(versions):
        chain.publish(codecs=codecs)
    return chain


def log_of(chain: Chain, path: Path, keep_bytes: int | None = None) -> DeltaLog:
    log = DeltaLog(path, keep_bytes)
    log.open(chain.at[0])
    for version, data in enumerate(chain.payloads, 1):
        if version > log.tip.version:
            append(log, chain, version, data)
    return log


def append(log: DeltaLog, chain: Chain, version: int, data: bytes) -> None:
    payload = Payload(data)
    log.append(data, payload)
    log.settle(plain(payload, SCHEMA, chain.arenas[version - 1], POOL))
    log.tend(POOL)


# -- schema --


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 3 * PACK_BELOW)), max_size=12))
@QUICKLY
def test_every_element_is_in_one_block_and_tensors_are_in_one_piece(sizes: list[tuple[int, int]]) -> None:
    dtypes = {1: "uint8", 2: "bfloat16", 4: "float32"}
    schema = Schema(Tensor(f"t{n}", (size,), dtypes[width]) for n, (width, size) in enumerate(sizes))
    found = {n: [] for n in range(len(sizes))}
    for block in schema.blocks:
        assert block.elements <= codec.BLOCK_ELEMENTS and block.offset % 64 == 0
        for span in block.spans:
            assert schema.tensors[span.tensor].width == block.width
            place = schema.offset_of(span.tensor) + span.start * block.width
            assert place == block.offset + span.at * block.width
            found[span.tensor].append((span.start, span.stop))
    for tensor, spans in found.items():
        assert [i for i, _ in spans] == sorted(i for i, _ in spans)
        assert sum(stop - start for start, stop in spans) == schema.tensors[tensor].elements
    assert Schema.decode(schema.encode()) == schema


def test_what_is_gathered_lives_as_long_as_it_is_needed() -> None:
    """The user's tensors may go when `publish` has returned."""
    torch = pytest.importorskip("torch")
    schema = Schema([Tensor("x", (5_000_000,), "bfloat16"), Tensor("y", (30, 40), "bfloat16")])
    ones = {"x": torch.full((5_000_000,), 1.0, dtype=torch.bfloat16), "y": torch.ones(40, 30).bfloat16().T}
    parts = gather(schema, ones)
    del ones
    others = [torch.zeros(5_000_000, dtype=torch.bfloat16) for _ in range(3)]
    arena = np.zeros(schema.arena_bytes, np.uint8)
    assert all((parts.block(number, arena) == 0x3F80).all() for number in parts.touched())
    assert len(others) == 3 and parts.touched() == [0, 1, 2]


# -- one payload --


def test_a_payload_leads_where_it_says() -> None:
    chain = chain_of(3)
    shadow = at(chain, 0)
    for data in chain.payloads:
        one = staged(shadow, data)
        assert chain.holds(shadow)
        shadow.commit(one)
        assert chain.holds(shadow)
    assert shadow.at == chain.tip


def test_it_is_taken_in_any_portions() -> None:
    chain = chain_of(1)
    data = chain.payloads[0]
    reader, found = Reader(data), []
    for nbytes in range(0, len(data) + 1, 7):
        found += list(reader.grow(nbytes, len(SCHEMA.blocks)))
    found += list(reader.grow(len(data), len(SCHEMA.blocks)))
    assert found == list(Payload(data).blocks())


@contextmanager
def fed_while_no_thread_is_free() -> Iterator[tuple[Stage, Chain]]:
    """A stage that has got all blocks of a payload."""
    chain = chain_of(1)
    free = threading.Event()
    with ThreadPoolExecutor(1) as busy:
        busy.submit(free.wait)
        one, payload = Stage(at(chain, 0), busy, None, None), Payload(chain.payloads[0])
        for record in payload.manifest.records:
            one.feed(record.block, payload.block(record))
        yield one, chain
        free.set()


def test_who_waits_for_blocks_decodes_those_that_nobody_has_begun() -> None:
    with fed_while_no_thread_is_free() as (one, chain):
        patches = one._take(Payload(chain.payloads[0]).manifest)
        assert patches.keys() == staged(at(chain, 0), chain.payloads[0]).patches.keys() and patches


@pytest.mark.parametrize("wrong", ["another block's", "of a block that stays", "no block"])
def test_what_was_read_where_no_record_begins_is_refused(wrong: str) -> None:
    """A source may say so of any place: what comes of it is compared with what is signed, and nothing is staged."""
    chain = chain_of(1)
    payload, shadow = Payload(chain.payloads[0]), at(chain, 0)
    first, second = (payload.block(record) for record in payload.manifest.records[:2])
    one = Stage(shadow, POOL, None, None)
    block = len(SCHEMA.blocks) if wrong == "of a block that stays" else payload.manifest.records[0].block
    one.feed(block, {"another block's": second, "no block": b"\xff" * 40}.get(wrong, first))
    with pytest.raises(DamageError):
        one.finish(payload, KEY.public)
    assert chain.holds(shadow) and staged(shadow, chain.payloads[0]).at == chain.at[1]


def test_a_stage_that_is_cancelled_reads_nothing_any_more() -> None:
    with fed_while_no_thread_is_free() as (one, _):
        one.cancel()
        assert one._fed and all(future.cancelled() for future in one._fed.values()) and not one._decode_next()


@given(st.integers(0, 70))
@QUICKLY
def test_a_tree_that_grows_has_the_root_of_its_definition(count: int) -> None:
    """Level by level, the last of an odd number passed up; with leaf and node told apart, and their number."""
    leaves = [leaf(bytes([number])) for number in range(count)]
    level = leaves
    while len(level) > 1:
        pairs = [strong(b"node", *level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
        level = pairs + level[2 * len(pairs) :]
    assert merkle_root(leaves) == strong(b"root", count.to_bytes(8, "little"), *level)


def test_any_bit_that_flips_is_found_before_the_commit() -> None:
    chain = chain_of(1)
    data = bytearray(chain.payloads[0])
    shadow = at(chain, 0)
    for place in range(len(data)):
        data[place] ^= 1 << (place % 8)
        with pytest.raises(REFUSED):
            staged(shadow, bytes(data))
        data[place] ^= 1 << (place % 8)
    assert staged(shadow, bytes(data)).at == chain.tip


def test_any_bit_that_flips_in_a_shadow_is_found_before_the_commit() -> None:
    chain = chain_of(1, seed=3)
    shadow = at(chain, 0)
    own = np.zeros(shadow.arena.size, bool)
    for block in SCHEMA.blocks:
        own[block.offset : block.offset + block.nbytes] = True
    for place in np.flatnonzero(own):
        shadow.arena[place] ^= 1 << (place % 8)
        with pytest.raises(DamageError, match="shadow is damaged"):
            staged(shadow, chain.payloads[0])
        shadow.arena[place] ^= 1 << (place % 8)


def test_other_keys_and_other_schemas_are_refused() -> None:
    chain = Chain()
    chain.publish(key=SigningKey())
    with pytest.raises(DamageError, match="not signed by the key"):
        staged(at(chain, 0), chain.payloads[0])
    assert staged(at(chain, 0), chain.payloads[0], public=None).at == chain.tip
    other = MemoryShadow(Schema(reversed(SCHEMA.tensors)))
    other.begin(chain.at[0], [b""] * len(SCHEMA.blocks))
    with pytest.raises(REFUSED):
        staged(other, chain.payloads[0])


def test_a_filtered_receiver_looks_at_its_own_blocks_only() -> None:
    chain = chain_of(1)
    shadow = at(chain, 0)
    owned = SCHEMA.blocks_of(lambda name: name == "c")
    shadow.arena[0] ^= 1  # of "a"
    one = Stage(shadow, POOL, None, owned).finish(Payload(chain.payloads[0]), KEY.public)
    shadow.commit(one)
    assert np.array_equal(shadow.tensor("c"), SCHEMA.view(chain.arenas[1], SCHEMA.index["c"]))
    assert set(one.patches) == set(owned)


# -- any schedule --


@given(st.data())
@QUICKLY
def test_after_any_schedule_a_shadow_is_a_version_of_the_chain(data: Any) -> None:
    """Publish, join, drop, duplicate, reorder, corrupt; staged on what is staged; committed late or never."""
    chain = Chain(data.draw(st.integers(0, 5)))
    shadow, onto, held = at(chain, 0), None, []
    for _ in range(data.draw(st.integers(1, 12))):
        what = data.draw(st.sampled_from(["publish", "deliver", "deliver", "corrupt", "commit", "fold", "join"]))
        if what == "publish" or not chain.payloads:
            chain.publish(data.draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])))
            continue
        one = chain.payloads[data.draw(st.integers(0, len(chain.payloads) - 1))]
        have = shadow.at if onto is None else onto.at
        if what == "join":
            shadow, onto, held = at(chain, data.draw(st.integers(0, len(chain.payloads)))), None, []
        elif what == "corrupt":
            place = data.draw(st.integers(0, len(one) - 1))
            with pytest.raises(REFUSED):
                staged(shadow, one[:place] + bytes([one[place] ^ 1]) + one[place + 1 :], onto)
        elif what == "commit" and held:
            shadow.commit(held.pop(data.draw(st.integers(0, len(held) - 1))))
            held = [s for s in held if s.at.version > shadow.at.version]
            onto = onto if onto is not None and onto.at.version > shadow.at.version else None
        elif what in ("deliver", "fold"):
            payload = Payload(one)
            if what == "fold" and have.version < chain.tip.version:
                first = have.version
                forms = [Payload(p) for p in chain.payloads[first:]]
                plains = [
                    p if (d := plain(p, SCHEMA, chain.arenas[first + n], POOL)) is None else Payload(d)
                    for n, p in enumerate(forms)
                ]
                payload = Payload(fold(plains, POOL, lambda b: SCHEMA.block_view(chain.arenas[-1], SCHEMA.blocks[b])))
            if payload.base == have:
                onto = staged(shadow, bytes(payload.data), onto)
                held.append(onto)
            else:
                with pytest.raises(DamageError, match="came for"):
                    staged(shadow, bytes(payload.data), onto)
        assert chain.holds(shadow)


# -- folds --


@pytest.mark.parametrize("codecs", ["auto", "fast"])
def test_a_fold_does_what_the_deltas_do_and_is_smaller(codecs: str, tmp_path: Path) -> None:
    chain = chain_of(9, codecs=codecs)
    log = log_of(chain, tmp_path)
    for start in range(9):
        for end in range(start + 1, 10):
            pieces = log.pieces(start, end)
            shadow = at(chain, start)
            data = fold(pieces, POOL)
            shadow.commit(staged(shadow, data))
            assert shadow.at == chain.at[end] and chain.holds(shadow)
    assert len(log.pieces(0, 8)) == 1 and len(log.pieces(1, 8)) == 3
    assert len(fold(log.pieces(0, 8), POOL)) < sum(map(len, chain.payloads[:8]))


# -- the log --


def test_a_log_is_taken_up_where_it_ended(tmp_path: Path) -> None:
    chain = chain_of(3)
    log_of(chain, tmp_path)
    chain.publish()
    again = log_of(chain, tmp_path)
    assert again.tip == chain.tip
    with pytest.raises(LineageError):
        DeltaLog(tmp_path).open(Version(0, bytes(32)))
    with pytest.raises(ArgumentError, match="version 0"):
        DeltaLog(tmp_path).open(chain.at[1])
    again = log_of(chain, tmp_path)
    assert again.tip == chain.tip
    with pytest.raises(LineageError):
        again.append(chain.payloads[0], Payload(chain.payloads[0]))


def test_a_pruned_log_leads_on_from_the_base_and_from_what_it_kept(tmp_path: Path) -> None:
    chain = chain_of(11)
    sizes = [len(data) for data in chain.payloads]
    log_of(chain, tmp_path, keep_bytes=sum(sizes[-4:]))
    again = DeltaLog(tmp_path)
    again.open(chain.at[0])
    assert again.tip == chain.tip and again.settled == chain.tip
    for start in range(12):
        if not again.knows(chain.at[start]):
            assert 0 < start < 7
        elif start < 11:
            shadow = at(chain, start)
            shadow.commit(staged(shadow, fold(again.pieces(start, 11), POOL)))
            assert chain.holds(shadow) and shadow.at == chain.tip
    assert sum(path.stat().st_size for path in tmp_path.glob("d*.pccl")) <= sum(sizes[-4:])


@given(budget=st.integers(0, 12_000))
@QUICKLY
def test_a_crash_at_any_byte_leaves_a_log_that_ends_with_a_whole_version(
    budget: int, monkeypatch: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("log")
    chain = chain_of(6, seed=2)
    durable = 0
    log = DeltaLog(path, keep_bytes=2 * len(chain.payloads[0]))
    with crashes_after(budget, monkeypatch):
        try:
            log.open(chain.at[0])
            for version, data in enumerate(chain.payloads, 1):
                log.append(data, Payload(data))
                durable = version
                log.settle(plain(Payload(data), SCHEMA, chain.arenas[version - 1], POOL))
                log.tend(POOL)
        except Crash:
            pass
    again = DeltaLog(path)
    again.open(chain.at[0])
    assert durable <= again.tip.version <= durable + 1 and again.tip == chain.at[again.tip.version]
    assert again.settled.version >= again.tip.version - 1
    shadow = at(chain, 0)
    if again.settled.version:
        shadow.commit(staged(shadow, fold(again.pieces(0, again.settled.version), POOL)))
    assert chain.holds(shadow) and shadow.at == again.settled


# -- shadows --


class Dying(FileShadow):
    """Dies after so many elements of a commit."""

    def __init__(self, path: Path, left: list[int]) -> None:
        super().__init__(path, SCHEMA)
        self._left = left

    def _write(self, patches: Any) -> None:
        for number, (indices, values) in patches.items():
            count = min(len(indices), max(0, self._left[0]))
            self._left[0] -= len(indices)
            super()._write({number: (indices[:count], values[:count])})
            if count < len(indices):
                raise Crash


@given(budget=st.integers(0, 6000), versions=st.integers(1, 3))
@QUICKLY
def test_a_crash_at_any_byte_leaves_a_shadow_at_a_version(
    budget: int, versions: int, monkeypatch: Any, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("shadow") / "w"
    chain = chain_of(versions, seed=4)
    chain.begin(FileShadow(path, SCHEMA))
    committed = 0
    with crashes_after(budget, monkeypatch) as left:
        try:
            shadow = Dying(path, left)
            for version, data in enumerate(chain.payloads, 1):
                one = staged(shadow, data)
                shadow.prepare(one)
                shadow.commit(one)
                committed = version
        except Crash:
            pass
    again = FileShadow(path, SCHEMA)
    assert again.at is not None and committed <= again.at.version <= committed + 1
    assert chain.holds(again)
    again.check()


def test_a_shadow_outlives_its_process_and_knows_its_schema(tmp_path: Path) -> None:
    chain = chain_of(1)
    shadow = FileShadow(tmp_path / "w", SCHEMA)
    assert shadow.at is None
    chain.begin(shadow)
    shadow.commit(staged(shadow, chain.payloads[0]))
    shadow.close()
    again = FileShadow(tmp_path / "w", SCHEMA)
    assert chain.holds(again) and again.at == chain.tip
    again.arena[3] ^= 4
    with pytest.raises(DamageError, match="a"):
        again.check()
    with pytest.raises(SchemaError):
        FileShadow(tmp_path / "w", Schema([*SCHEMA.tensors[:2], Tensor("z", (33,), "float16"), *SCHEMA.tensors[3:]]))


def test_a_damaged_journal_or_record_of_a_shadow_is_found(tmp_path: Path) -> None:
    chain = chain_of(1)
    shadow = FileShadow(tmp_path / "w", SCHEMA)
    chain.begin(shadow)
    shadow.prepare(staged(shadow, chain.payloads[0]))
    journal = (tmp_path / "w.next.tmp").read_bytes()
    for place in range(0, len(journal), 11):
        (tmp_path / "w.next").write_bytes(journal[:place] + bytes([journal[place] ^ 1]) + journal[place + 1 :])
        with pytest.raises(DamageError):
            FileShadow(tmp_path / "w", SCHEMA)
    (tmp_path / "w.next").unlink()
    meta = bytearray((tmp_path / "w.meta").read_bytes())
    for place in range(len(meta)):
        meta[place] ^= 1
        (tmp_path / "w.meta").write_bytes(meta)
        with pytest.raises(DamageError):
            FileShadow(tmp_path / "w", SCHEMA)
        meta[place] ^= 1


# -- the command line --


def test_inspect_shows_a_payload_and_finds_damage(tmp_path: Path) -> None:
    chain = chain_of(2)
    file = tmp_path / "d.pccl"
    file.write_bytes(chain.payloads[1])
    seen = CliRunner().invoke(command, ["inspect", str(file), "--blocks", "--key", KEY.public.hex()])
    assert seen.exit_code == 0, seen.output
    assert "delta" in seen.output and "2 of lineage" in seen.output and "right" in seen.output
    told = json.loads(CliRunner().invoke(command, ["inspect", str(file), "--json"]).output)
    assert (
        told["blocks"] == f"{len(Payload(chain.payloads[1]).manifest.records)} of {len(SCHEMA.blocks)}"
        and told["changed"] > 0
    )
    other = CliRunner().invoke(command, ["inspect", str(file), "--key", SigningKey().public.hex()])
    assert isinstance(other.exception, DamageError)
    damaged = bytearray(chain.payloads[1])
    damaged[200] ^= 1
    file.write_bytes(damaged)
    assert isinstance(CliRunner().invoke(command, ["inspect", str(file)]).exception, DamageError)


# -- writing --


@pytest.mark.parametrize("places", [np.uint32, np.int64])
@pytest.mark.parametrize("values", [np.uint8, np.uint16, np.uint32])
def test_values_come_to_their_places(places: Any, values: Any) -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(0, 255, 1000).astype(values)
    index = np.flatnonzero(rng.random(1000) < 0.1).astype(places)
    new = rng.integers(0, 255, len(index)).astype(values)
    wanted = target.copy()
    wanted[index] = new
    write(target, index, new)
    assert np.array_equal(target, wanted)


def test_places_that_do_not_fit_are_refused() -> None:
    target = np.zeros(10, np.uint16)
    for index in ([3, 10], [4, 4], [5, 3]):
        with pytest.raises(ArgumentError, match="places must ascend"):
            write(target, np.array(index, np.uint32), np.ones(2, np.uint16))
    with pytest.raises(ArgumentError, match="2 places, 3 values"):
        write(target, np.array([1, 2], np.uint32), np.ones(3, np.uint16))
    assert not target.any()


# -- a log file that grows --


def test_a_growing_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "d"
    with Growing(path) as file:
        file.add(b"one")
        file.add(b"two" * 100_000)
        assert not path.exists()
        file.publish()
    assert path.read_bytes() == b"one" + b"two" * 100_000
    with Growing(path) as file:
        file.add(b"three")
    assert [entry.name for entry in tmp_path.iterdir()] == ["d"] and path.read_bytes()[:3] == b"one"


def test_all_of_a_growing_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    real_sync, real_replace = os.fdatasync, os.replace
    synced: list[int] = []
    named: list[int] = []

    def sync(handle: int) -> None:
        size = os.fstat(handle).st_size
        real_sync(handle)
        synced.append(size)

    def replace(source: Path, target: Path) -> None:
        named.append(synced[-1])
        real_replace(source, target)

    monkeypatch.setattr(files.os, "fdatasync", sync)
    monkeypatch.setattr(files.os, "replace", replace)
    for parts in ([], [b"one"], [b"one"] * 50, [b"two" * 100_000] * 5):
        with Growing(tmp_path / "d") as file:
            for part in parts:
                file.add(part)
            file.publish()
        assert named.pop() == (tmp_path / "d").stat().st_size == sum(map(len, parts))


def test_a_disk_that_fails_early_is_told_at_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    failed = threading.Event()

    def fail(handle: int) -> None:
        failed.set()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fdatasync", fail)
    with pytest.raises(LogError, match="Input/output"), Growing(tmp_path / "d") as file:
        file.add(b"one")
        assert failed.wait(10)
        file.publish()
    assert not list(tmp_path.iterdir())
    with pytest.raises(LogError, match="No such file"):
        Growing(tmp_path / "nowhere" / "d")


# -- written behind the commit --


def test_a_reader_waits_for_what_is_committed_but_not_written() -> None:
    chain = chain_of(1)
    shadow, go = at(chain, 0), threading.Event()
    with ThreadPoolExecutor(1) as writers, ThreadPoolExecutor(2) as readers:
        shadow.pool = writers
        writers.submit(go.wait)
        shadow.commit(staged(shadow, chain.payloads[0]))
        assert shadow.at == chain.at[1]
        whole, block = readers.submit(lambda: shadow.arena.copy()), readers.submit(lambda: shadow.block(0).copy())
        assert not wait([whole, block], 0.2).done
        go.set()
        assert np.array_equal(block.result(10), SCHEMA.block_view(chain.arenas[1], SCHEMA.blocks[0]))
        whole.result(10)
    assert chain.holds(shadow)
