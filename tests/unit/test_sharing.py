"""Chunks of shared state: the tree of digests, what is moved, torn chunks, what is kept, and what reports say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fake_state import Dead, Fake, Hub, run

from pccl.errors import MismatchError, TransferError
from pccl.sharing import chunks, prefetch_state, sync_state
from pccl.sharing.content import Content
from pccl.sharing.join import _ENTER_S, _READ_MAX_S, _Entering
from pccl.sharing.report import Difference, differences_of, flags_of
from pccl.sharing.rounds import Sync
from pccl.sharing.staging import READ_FIRST, SCALARS_AHEAD_MAX, InPlace, Staging, differing
from pccl.transfer.layout import Layout
from pccl.transfer.manifest import HEAD_GENERATION, Head, Manifest, digest_of, head_key
from pccl.transfer.schedule import Schedule
from pccl.transfer.target import Bytes

sizes = st.lists(st.integers(0, 5000), max_size=8)


def bytes_of(nbytes: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng([seed, nbytes]).integers(0, 256, nbytes, np.uint8)


def content_of(arrays: dict[str, Any], drift: Sequence[str] = ()) -> Content:
    content = Content(arrays, frozenset(drift), read_only=False)
    for share in content.shares:
        share.read()
    return content


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1024)


# -- how it is cut ---------------------------------------------------------------------------------------------------


@given(sizes, st.sampled_from([1024, 2048]))
def test_a_layout_covers_every_byte_once_and_no_chunk_is_in_two_parts(parts: list[int], chunk_bytes: int) -> None:
    layout = Layout(chunk_bytes, parts)
    spans = [layout.span(chunk) for chunk in range(layout.count)]
    assert [byte for first, end in spans for byte in range(first, end)] == list(range(sum(parts)))
    for chunk, (first, end) in enumerate(spans):
        part, offset = layout.place(chunk)
        assert 0 < end - first <= chunk_bytes and offset + end - first <= parts[part]
        assert layout.offsets[part] + offset == first and chunk in layout.chunks(part)


@given(sizes, st.integers(1, 4))
def test_digests_do_not_depend_on_threads(parts: list[int], threads: int) -> None:
    memory = [bytes_of(size) for size in parts]
    expected = b"".join(digest_of(m[i : i + 1024]) for m in memory for i in range(0, m.size, 1024))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_THREAD_BYTES", 1 + sum(parts) // threads)
        assert chunks.digests_of(memory, 1024) == expected


@given(sizes.filter(any), st.data())
def test_the_root_knows_every_byte_and_every_border(parts: list[int], data: st.DataObject) -> None:
    memory = [bytes_of(size) for size in parts]
    before = Manifest.of("a", 1, memory, 1024)
    head = Head.of(before, before.encode())
    assert Manifest.decode(before.encode(), head, "a") == before
    at = data.draw(st.integers(0, sum(parts) - 1))
    part = int(np.searchsorted(np.cumsum(parts), at, side="right"))
    offset = at - sum(parts[:part])
    memory[part][offset] ^= 1
    after = Manifest.of("a", 1, memory, 1024)
    assert after.root != before.root
    assert [after.part_digest(i) != before.part_digest(i) for i in range(len(parts))] == [
        i == part for i in range(len(parts))
    ]
    assert [c for c in range(after.count) if after.digest(c) != before.digest(c)] == [
        before.layout.firsts[part] + offset // 1024
    ]
    assert Manifest.of("a", 1, [np.concatenate(memory)], 1024).root != after.root or len(parts) == 1


@given(sizes, st.sets(st.integers(0, 40)))
def test_asks_keep_to_one_part_and_to_what_is_missing(parts: list[int], have: set[int]) -> None:
    layout = Layout(1024, parts)
    there = {chunk for chunk in have if chunk < layout.count}
    schedule = Schedule(layout.nbytes, 1024, there, parts)
    schedule.add(b"a", 0.0)
    asked: list[int] = []
    now = 0.0
    while not schedule.done:
        for ask in schedule.next(now):
            assert len({layout.part_of(chunk) for chunk in ask.chunks}) == 1
            assert ask.nbytes == sum(end - first for first, end in map(layout.span, ask.chunks))
            asked += ask.chunks
            now += 0.01
            schedule.arrived(ask, now, list(ask.chunks), [])
    assert sorted(asked) == sorted(set(range(layout.count)) - there)


def test_chunks_are_the_same_on_peers_whose_scalars_differ_in_size(small_chunks: None) -> None:
    a, b = (content_of({"w": bytes_of(5000), "s": "x" * n}).fixed for n in (1, 10_000))
    assert a.layout.chunk_bytes == b.layout.chunk_bytes == 1024
    assert a.fits(b.manifest("n", 1)) and differing(a, b.manifest("n", 1)) == []
    with pytest.raises(TransferError, match="parts of"):
        differing(a, content_of({"w": bytes_of(5001)}).fixed.manifest("n", 1))


def test_large_contents_have_larger_chunks() -> None:
    assert chunks.layout_of([1 << 30]).chunk_bytes == 256 << 10
    assert chunks.layout_of([17 << 30] * 3).chunk_bytes == 1 << 20
    assert chunks.layout_of([1] * 20_000).count == 20_000


# -- what is moved ---------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 6000)), st.sets(st.integers(0, 23_999)))
def test_staging_wants_what_differs_and_no_more(arrays: dict[str, int], changed: set[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", 1024)
        ours = {name: bytes_of(size, ord(name)) for name, size in arrays.items()}
        theirs = {name: array.copy() for name, array in ours.items()}
        flat = [(name, i) for name in sorted(theirs) for i in range(theirs[name].size)]
        touched = {flat[at] for at in changed if at < len(flat)}
        for name, i in touched:
            theirs[name][i] ^= 1
        here, there = content_of(dict(ours)), content_of(dict(theirs))
        manifest = there.fixed.manifest("n", 1)
        staging = Staging(here.fixed)
        given_up = set(staging.begin(manifest))
        layout = manifest.layout
        source = np.concatenate(there.fixed.parts)
        names = sorted(arrays)
        assert {layout.place(c) for c in staging.wrong} == {(names.index(n), i // 1024 * 1024) for n, i in touched}
        for chunk in set(range(manifest.count)) - given_up:
            staging.place(chunk, 1)[:] = source[slice(*layout.span(chunk))]
        staging.keep(bytes([255] * (manifest.count // 8) + [(1 << manifest.count % 8) - 1][: manifest.count % 8]))
        assert staging.complete
        here.write(here.fixed, manifest, staging.pieces(), staging.packed())
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
        here.fixed.read()
        assert here.fixed.manifest("", 1).root == manifest.root


def test_one_percent_of_chunks_is_little_more_than_one_percent_of_bytes(small_chunks: None) -> None:
    hub = Hub(4)
    right = bytes_of(1000 * 1024)
    held = [{"w": right.copy(), "step": 1} for _ in range(4)]
    for chunk in range(0, 1000, 100):
        held[3]["w"][chunk * 1024 + 5] ^= 255
    outcomes = run([Fake(hub, rank) for rank in range(4)], lambda fake, rank: sync_state(fake, held[rank]))
    scalars_bytes = content_of(held[0]).fixed.blob.size  # they come with the manifest, unasked whether they differ
    assert outcomes[3].received_bytes == 10 * 1024 + scalars_bytes <= 0.02 * right.size
    assert all(np.array_equal(entries["w"], right) for entries in held)
    expected = (Difference(bytes([3]) * 16, "w", tuple(range(0, 1000, 100)), 1024, right.size),)
    assert all(outcome.differences == expected for outcome in outcomes)
    assert "'w' at peer 03030303: 10 of 1000 chunks, bytes 0-1023, 102400-103423" in str(outcomes[0])


class Patient(Fake):
    """Begins to fetch when all of its sources show it: none comes too late to have a part."""

    def pull(self, name: str, target: Any, sources: Sequence[bytes], wish: Any, seconds: float) -> Any:
        with self.hub.changed:
            self.hub.wait(lambda: all((head_key(name), HEAD_GENERATION) in self.hub.regions[peer] for peer in sources))
        return super().pull(name, target, sources, wish, seconds)


def test_several_sources_share_what_differs(small_chunks: None) -> None:
    hub = Hub(4)
    held = [{"w": bytes_of(3000 * 1024, max(rank, 1))} for rank in (1, 1, 1, 3)]
    fakes = [*(Fake(hub, rank) for rank in range(3)), Patient(hub, 3)]
    outcomes = run(fakes, lambda fake, rank: sync_state(fake, held[rank]))
    assert all(outcome.sent_bytes > 0 for outcome in outcomes[:3])
    assert sum(outcome.sent_bytes for outcome in outcomes) == outcomes[3].received_bytes >= 3000 * 1024


def test_nothing_is_touched_when_the_only_source_dies(small_chunks: None) -> None:
    """The only one that holds it dies in the middle: what has come is put aside, not into place."""
    hub = Hub(2)
    held = [{"w": bytes_of(4096 * 1024, rank)} for rank in range(2)]
    fakes = [Fake(hub, 0, dies_at=8), Fake(hub, 1)]
    outcomes = run(fakes, lambda fake, rank: sync_state(fake, held[rank]))
    assert isinstance(outcomes[0], Dead)
    assert 0 < outcomes[1].received_bytes < 4096 * 1024
    assert np.array_equal(held[1]["w"], bytes_of(4096 * 1024, 1)), "an entry was touched before everything was there"


def test_staging_keeps_what_is_there_for_the_next_fetch(small_chunks: None) -> None:
    here, there = content_of({"w": bytes_of(8192, 1)}), content_of({"w": bytes_of(8192, 2)})
    staging = Staging(here.fixed)
    manifest = there.fixed.manifest("n", 1)
    assert list(staging.begin(manifest)) == [8]  # the scalars, which are the same
    staging.keep(bytes([0b0000_0101, 0]))
    assert not staging.complete
    assert list(staging.begin(there.fixed.manifest("n", 2))) == [0, 2, 8]
    other = content_of({"w": bytes_of(8192, 3)})
    assert list(staging.begin(other.fixed.manifest("n", 3))) == [8]


def test_scalars_come_with_the_manifest(small_chunks: None) -> None:
    """They are asked for by what the head says of their size, which need not be the size of those here."""
    here, there = content_of({"w": bytes_of(8192), "step": 1}), content_of({"w": bytes_of(8192), "step": 1 << 20_000})
    manifest = there.fixed.manifest("n", 1)
    staging = Staging(here.fixed)
    ahead = staging.ahead(Head.of(manifest, manifest.encode()))
    assert ahead is not None and list(ahead.chunks) == [8, 9, 10] and ahead.layout.parts == manifest.parts
    for chunk in ahead.chunks:
        part, offset = ahead.layout.place(chunk)
        memory = staging.place(chunk, 1)
        memory[:] = there.fixed.parts[part][offset : offset + memory.size]
    assert list(staging.begin(manifest)) == list(range(8))
    staging.keep(bytes([0, 0b111]))
    assert staging.complete and staging.packed() == there.fixed.blob.tobytes() and staging.wrong_scalars() == [0]
    assert staging.ahead(Head.of(manifest, manifest.encode())) is None, "they are here"
    other = content_of({"w": bytes_of(8192), "step": 7})
    later = other.fixed.manifest("n", 2)
    assert list(staging.begin(later)) == list(range(8)) and not staging.complete
    staging.place(8, 1)[:] = other.fixed.blob
    staging.keep(bytes([0, 1]))
    assert staging.packed() == other.fixed.blob.tobytes(), "other content has other scalars, in memory of its own"


def test_nothing_is_asked_ahead_where_there_are_no_scalars_or_too_many(small_chunks: None) -> None:
    plain, cut = content_of({"w": bytes_of(8192)}), content_of({"w": bytes_of(4096), "step": 1})
    much = content_of({"w": bytes_of(8192), "step": bytes(SCALARS_AHEAD_MAX)})

    def asked(here: Content, there: Content) -> bool:
        manifest = there.fixed.manifest("n", 1)
        return Staging(here.fixed).ahead(Head.of(manifest, manifest.encode())) is not None

    assert asked(cut, cut)
    assert not asked(plain, plain) and not asked(much, much)
    assert not asked(much, cut), "it has fewer bytes than the tensors here"


def test_flags_say_where() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", 1024)
        content = content_of({"a": bytes_of(3000), "b": bytes_of(10), "s": 1, "t": 2, "rng": bytes_of(2048)}, ["rng"])
    fixed, loose = content.shares
    flags = np.concatenate([flags_of(fixed, [0, 2, 3], [1]), flags_of(loose, [1], [])])
    found = differences_of(b"p" * 16, content.shares, flags)
    assert [(d.entry, d.chunks, d.ranges) for d in found] == [
        ("a", (0, 2), ((0, 1024), (2048, 3000))),
        ("b", (0,), ((0, 10),)),
        ("t", (), ()),
        ("rng", (1,), ((1024, 2048),)),
    ]
    assert str(found[2]) == "'t' at peer 70707070: the scalar differs"


# -- a joiner --------------------------------------------------------------------------------------------------------


class Moving(Fake):
    """A member whose memory changes: `turn` is called before it serves some of its data."""

    def __init__(self, hub: Hub, rank: int, turn: Any) -> None:
        super().__init__(hub, rank)
        self.turn = turn

    def serve(self, key: bytes, generation: int, offset: int, nbytes: int) -> Bytes | None:
        region = self.hub.regions[self.peer_id].get((key, generation))
        if region is not None and region.size >= 8192:
            self.turn(offset, nbytes)
        return super().serve(key, generation, offset, nbytes)


def test_a_torn_chunk_is_never_counted_and_the_rest_is_left_to_the_sync(small_chunks: None) -> None:
    hub = Hub(2)
    theirs = {"w": bytes_of(64 * 1024), "step": 7}

    def tear(offset: int, nbytes: int) -> None:
        for chunk in range(offset // 1024, (offset + nbytes) // 1024):
            if chunk % 8 == 3:
                theirs["w"][chunk * 1024 + 7] += 1

    member = Moving(hub, 0, tear)
    hub.alive.discard(bytes([1]) * 16)
    sync_state(member, theirs)
    hub.alive.add(bytes([1]) * 16)
    joiner, ours = Fake(hub, 1, entered=1, joins=member), {"w": bytes_of(64 * 1024, 1), "step": 0}
    report = prefetch_state(joiner, ours)
    right = np.array_split(ours["w"] == theirs["w"], 64)
    wrong = [chunk for chunk in range(64) if not right[chunk].all()]
    lacking = report.total_bytes - report.held_bytes
    assert lacking == 8 * 1024 and len(wrong) * 1024 <= lacking, "a torn chunk was taken for a good one"
    assert report.why and ours["step"] == 0
    member.turn = lambda offset, nbytes: None
    outcomes = run([member, joiner], lambda fake, rank: sync_state(fake, (theirs, ours)[rank]))
    assert outcomes[1].received_bytes <= lacking + 1024
    assert np.array_equal(ours["w"], theirs["w"]) and ours["step"] == theirs["step"] == 7


def test_passes_follow_a_state_that_changes_slowly(small_chunks: None) -> None:
    """Each time a tenth of the chunks has been served the member trains a bit and synchronises anew."""
    hub = Hub(1)
    theirs = {"w": bytes_of(100 * 1024)}
    served = [0]

    def train(offset: int, nbytes: int) -> None:
        served[0] += nbytes
        if served[0] > 20_000:
            served[0] = 0
            theirs["w"][np.random.default_rng(offset).integers(0, 100) * 1024] += 1
            sync_state(member, theirs)

    member = Moving(hub, 0, lambda offset, nbytes: None)
    sync_state(member, theirs)
    member.turn = train
    joiner, ours = Fake(hub, 1, entered=1, joins=member), {"w": np.zeros(100 * 1024, np.uint8)}
    report = prefetch_state(joiner, ours)
    assert report.passes > 1
    assert report.held_bytes >= 95 * 1024 and report.received_bytes < 130 * 1024


def test_a_joiner_that_holds_nothing_of_it_does_not_read_what_it_has(small_chunks: None) -> None:
    there, here = content_of({"w": bytes_of(2000 * 1024)}).fixed, content_of({"w": bytes_of(2000 * 1024, 1)}).fixed
    target = InPlace(here)
    assert list(target.begin(there.manifest("n", 1))) == [2000], "but the scalars"
    known = sum(any(here.digest(chunk)) for chunk in range(2000))
    assert READ_FIRST <= known <= 2 * READ_FIRST, "all were read"
    assert target.keep(bytes([255]) * 250 + b"\1") == [] and here.digests == there.digests


@pytest.mark.parametrize("count", [2000, 300, 3])
def test_a_joiner_that_holds_some_of_it_fetches_the_rest(small_chunks: None, count: int) -> None:
    there, ours = bytes_of(count * 1024), bytes_of(count * 1024)
    ours[: ours.size // 3] ^= 1
    target = InPlace(content_of({"w": ours}).fixed)
    manifest = content_of({"w": there}).fixed.manifest("n", 1)
    assert list(target.begin(manifest)) == list(range(-(-(ours.size // 3) // 1024), count + 1))


def test_what_came_ahead_does_not_make_a_joiner_read_everything(small_chunks: None) -> None:
    there, ours = content_of({"w": bytes_of(2000 * 1024)}).fixed, bytes_of(2000 * 1024, 1)
    here = content_of({"w": ours}).fixed
    target = InPlace(here)
    ahead = target.ahead(None)
    assert ahead is not None and list(ahead.chunks) == list(range(2000 // 64))
    ours[: len(ahead.chunks) * 1024] = there.tensors[0].data[: len(ahead.chunks) * 1024]
    assert list(target.begin(there.manifest("n", 1))) == [2000], "these are judged like all others"
    assert sum(any(here.digest(chunk)) for chunk in range(2000)) <= 2 * READ_FIRST, "all were read"
    assert target.ahead(None) is None, "only the first time"


def test_what_a_prefetch_has_left_is_nobodys_content(small_chunks: None) -> None:
    hub = Hub(2)
    theirs, ours = {"w": bytes_of(8192)}, {"w": bytes_of(8192, 1)}
    hub.alive.discard(bytes([1]) * 16)
    member = Fake(hub, 0)
    sync_state(member, theirs)
    hub.alive.add(bytes([1]) * 16)
    joiner = Fake(hub, 1, entered=1, joins=member)
    prefetch_state(joiner, ours)
    hub.kill(member.peer_id)
    with pytest.raises(MismatchError, match="nobody offers"):
        sync_state(joiner, ours)


def unread_joiner() -> tuple[Hub, list[dict[str, Any]], dict[str, Any], Fake, Content]:
    """A hub of three, what two have, and a joiner with its content: one byte is wrong, and it has not been read yet."""
    hub = Hub(3)
    theirs = [{"w": bytes_of(8192), "step": 7} for _ in range(2)]
    ours = {"w": bytes_of(8192), "step": 0}
    ours["w"][5000] ^= 1
    joiner = Fake(hub, 2, entered=1)
    content = Content(ours, frozenset(), read_only=False)
    content.fixed.forget()
    joiner.mixed.add(content.name(content.fixed))
    return hub, theirs, ours, joiner, content


def test_a_round_may_begin_before_what_is_here_is_known(small_chunks: None) -> None:
    hub, theirs, ours, joiner, content = unread_joiner()

    def peer(fake: Fake, rank: int) -> Any:
        if rank < 2:
            return sync_state(fake, theirs[rank])
        sync = Sync(fake, content, "majority", None)
        sync.open()
        content.fixed.read()
        try:
            return sync.run()
        finally:
            sync.close()

    outcomes = run([Fake(hub, 0), Fake(hub, 1), joiner], peer)
    assert (
        outcomes[2].entries_received == ("step", "w") and outcomes[2].received_bytes == 1024 + content.fixed.blob.size
    )
    assert [outcome.differences for outcome in outcomes] == [outcomes[2].differences] * 3
    assert np.array_equal(ours["w"], theirs[0]["w"]) and ours["step"] == 7


def test_a_guest_enters_sooner_where_members_have_much_to_read_but_not_for_ever() -> None:
    entering = _Entering(Fake(Hub(1), 0), content_of({"w": bytes_of(10)}))  # type: ignore[arg-type]
    assert not entering.is_near(_ENTER_S + 0.1, 0.0) and entering.is_near(_ENTER_S, 0.0)
    assert entering.is_near(_ENTER_S + 0.4, 0.2) and not entering.is_near(_ENTER_S + 0.5, 0.2)
    assert not entering.is_near(_ENTER_S + _READ_MAX_S + 0.1, 60.0)


def test_what_has_changed_is_known_before_all_that_was_asked_for_has_come(small_chunks: None) -> None:
    """Chunks 2 and 5 change after the first manifest; 5 has come already, as it is now."""
    old, ours = content_of({"w": bytes_of(8192)}).fixed, content_of({"w": bytes_of(8192, 1)}).fixed
    theirs = bytes_of(8192)
    theirs[2048] ^= 1
    theirs[5120] ^= 1
    new = content_of({"w": theirs}).fixed.manifest("n", 2)
    target, staging = InPlace(ours), Staging(ours)
    target.begin(old.manifest("n", 1))
    target.expect([5])
    staging.begin(new)
    assert staging.wrong == [2, 5]
    ours.tensors[0].data[:] = old.tensors[0].data
    assert target.keep(bytes([0b1101_1111, 1])) == [5]
    staging.keep(bytes([0b0010_0100, 0]))
    assert staging.complete


def test_what_did_not_come_as_expected_is_wanted_after_all(small_chunks: None) -> None:
    """The fetch ends without chunk 3, which is the same as before: the round must not end without it."""
    old, ours = content_of({"w": bytes_of(8192)}).fixed, content_of({"w": bytes_of(8192, 1)}).fixed
    theirs = bytes_of(8192)
    theirs[0] ^= 1
    new = content_of({"w": theirs}).fixed.manifest("n", 2)
    target, staging = InPlace(ours), Staging(ours)
    target.begin(old.manifest("n", 1))
    target.expect([])
    staging.begin(new)
    staging.keep(bytes([1, 0]))
    assert staging.complete and staging.wrong == [0]
    assert target.keep(bytes([0b1111_0111, 1])) == [3]
    assert not staging.complete
    assert set(range(8)) - set(staging.begin(new)) == {0, 3}
    staging.keep(bytes([0b1001, 0]))
    assert staging.complete


def test_a_round_that_went_on_with_too_much_hope_fetches_the_rest(small_chunks: None) -> None:
    """What is here is not what was said when the round went on: nobody commits before all of it is right."""
    hub, theirs, ours, joiner, content = unread_joiner()

    def peer(fake: Fake, rank: int) -> Any:
        if rank < 2:
            return sync_state(fake, theirs[rank])
        sync = Sync(fake, content, "majority", None)
        sync.open()
        content.fixed.digests = content_of({"w": bytes_of(8192), "step": 0}).fixed.digests
        sync.go_on()
        for _, pull in sync.pulls:
            pull.wait(10)
        content.fixed.read()
        try:
            return sync.run()
        finally:
            sync.close()

    outcomes = run([Fake(hub, 0), Fake(hub, 1), joiner], peer)
    assert all(outcome.rounds == 1 and outcome.differences == outcomes[2].differences for outcome in outcomes)
    assert outcomes[2].entries_received == ("step", "w")
    assert np.array_equal(ours["w"], theirs[0]["w"]) and ours["step"] == 7


def test_a_round_that_was_begun_and_is_not_gone_on_with_leaves_nothing(small_chunks: None) -> None:
    hub = Hub(2)
    ours = {"w": bytes_of(8192, 1)}
    content = Content(ours, frozenset(), read_only=False)
    content.fixed.forget()
    joiner = Fake(hub, 1, entered=1)
    joiner.mixed.add(content.name(content.fixed))

    def peer(fake: Fake, rank: int) -> Any:
        if rank == 0:
            return sync_state(fake, {"w": bytes_of(8192)})
        sync = Sync(fake, content, "majority", None)
        sync.open()
        pulls = [pull for _, pull in sync.pulls]
        sync.close()
        hub.kill(fake.peer_id)
        return [pull.cancel() for pull in pulls], sync.pulls

    outcomes = run([Fake(hub, 0), joiner], peer)
    assert outcomes[1] == ([True], []) and outcomes[0].digest
    assert np.array_equal(ours["w"], bytes_of(8192, 1))


def test_nobody_to_fetch_from() -> None:
    joiner = Fake(Hub(0), 1)
    report = prefetch_state(joiner, {"w": bytes_of(10)})
    assert (report.received_bytes, report.held_bytes, report.total_bytes) == (0, 0, 10)
    assert report.why == "the run has no members yet"
    assert not joiner.mixed


def test_drifting_entries_reach_a_joiner_that_has_prefetched_everything_else(small_chunks: None) -> None:
    hub = Hub(2)
    theirs = {"w": bytes_of(8192), "rng": bytes_of(100)}
    ours = {"w": bytes_of(8192, 1), "rng": bytes_of(100, 1)}
    hub.alive.discard(bytes([1]) * 16)
    member = Fake(hub, 0)
    sync_state(member, theirs, allow_drift=["rng"])
    hub.alive.add(bytes([1]) * 16)
    joiner = Fake(hub, 1, entered=1, joins=member)
    assert prefetch_state(joiner, ours, ["rng"]).held_bytes == 8192
    pair = (theirs, ours)
    outcomes = run([member, joiner], lambda fake, rank: sync_state(fake, pair[rank], allow_drift=["rng"]))
    assert outcomes[1].entries_received == ("rng",) and outcomes[1].received_bytes <= 200
    assert np.array_equal(ours["rng"], theirs["rng"])
