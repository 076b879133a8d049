"""One push, driven by hand; and doors and receipts, as they are and as they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.fake_port import FakePort

from pccl.errors import ArgumentError, Cancelled, Closed, PeerLost, ProtocolError, Timeout, TransferError
from pccl.transfer.manifest import Manifest
from pccl.transfer.push import PushJob
from pccl.transfer.receipt import (
    DOOR_BYTES,
    DOOR_GENERATION,
    NO_ROOT,
    RECEIPT_BYTES,
    Door,
    Receipt,
    door_key,
    pushed_name,
    receipt_key,
)
from pccl.types import Status

TO = b"t" * 16
MANIFEST = Manifest.of(pushed_name("x", TO), 3, bytes(5000), 1024)


class Lent:
    """An offer that says when it was told to end."""

    def __init__(self) -> None:
        self.manifest = MANIFEST
        self.then: Callable[[], None] | None = None

    def withdraw_soon(self, then: Callable[[], None]) -> None:
        self.then = then


def begun() -> tuple[FakePort, Lent, PushJob]:
    port, lent = FakePort(), Lent()
    job = PushJob(port, "x", TO, lent, PushJob.on_withdrawn, now=0.0, deadline_at=10.0)
    job.pump(0.0)
    return port, lent, job


def finish(port: FakePort, lent: Lent, job: PushJob) -> None:
    """The offer goes; until then it is not over."""
    assert not job.over and lent.then is not None
    lent.then()
    job.pump(port.now)
    assert job.over


def to_receipt(port: FakePort, job: PushJob, receipt: Receipt) -> None:
    port.regions[TO, door_key("x"), DOOR_GENERATION] = Door(77).encode()
    port.regions[TO, receipt_key("x"), 77] = receipt.encode()
    port.answer_all()


def test_what_was_taken_is_done() -> None:
    port, lent, job = begun()
    to_receipt(port, job, Receipt(3, MANIFEST.root, "", ""))
    finish(port, lent, job)
    assert job.error is None


def test_it_knocks_until_somebody_opens_or_its_time_is_over() -> None:
    port, lent, job = begun()
    tries = 0
    while not lent.then:
        tries += 1
        port.answer_all()
        port.now = job.deadline(port.now)
        job.pump(port.now)
    assert 10 < tries < 100
    port.answer_all()
    finish(port, lent, job)
    assert isinstance(job.error, Timeout) and "does not accept 'x'" in str(job.error)


@pytest.mark.parametrize(
    ("receipt", "cause", "words"),
    [
        (Receipt(0, NO_ROOT, "size", "too small"), "size", "did not take it: too small"),
        (Receipt(0, NO_ROOT, "cancelled", ""), "cancelled", "did not take it"),
        (Receipt(4, MANIFEST.root, "", ""), "digest", "generation 4"),
        (Receipt(3, b"r" * 16, "", ""), "digest", "took other content"),
    ],
)
def test_what_was_not_taken(receipt: Receipt, cause: str, words: str) -> None:
    port, lent, job = begun()
    to_receipt(port, job, receipt)
    finish(port, lent, job)
    assert isinstance(job.error, TransferError) and words in str(job.error)
    assert (job.error.cause, job.error.peer, job.error.name) == (cause, TO, "x")


@pytest.mark.parametrize(
    ("status", "error"), [(Status.EPEER, PeerLost), (Status.ECLOSED, Closed), (Status.ECANCELLED, TransferError)]
)
def test_a_door_that_cannot_be_asked_for(status: Status, error: type) -> None:
    port, lent, job = begun()
    port.end(next(iter(port.asked)), status)
    finish(port, lent, job)
    assert isinstance(job.error, error)


def test_a_receipt_that_is_no_more() -> None:
    port, lent, job = begun()
    port.regions[TO, door_key("x"), DOOR_GENERATION] = Door(77).encode()
    port.answer_all()
    finish(port, lent, job)
    assert isinstance(job.error, TransferError) and job.error.cause == "gone"


@pytest.mark.parametrize("what", ["door", "receipt"])
def test_what_cannot_be_read(what: str) -> None:
    port, lent, job = begun()
    port.regions[TO, door_key("x"), DOOR_GENERATION] = bytes(DOOR_BYTES) if what == "door" else Door(77).encode()
    port.regions[TO, receipt_key("x"), 77] = bytes(RECEIPT_BYTES)
    port.answer_all()
    finish(port, lent, job)
    assert isinstance(job.error, TransferError) and job.error.cause == "protocol"


def test_a_cancelled_push_waits_for_its_ask() -> None:
    port, lent, job = begun()
    job.cancel()
    job.pump(0.0)
    assert lent.then is not None
    lent.then()
    job.pump(0.0)
    assert not job.over and all(asked.cancelled for asked in port.asked.values())
    port.answer_all()
    assert job.over and isinstance(job.error, Cancelled)


def test_names() -> None:
    assert pushed_name("x", TO) != pushed_name("x", b"u" * 16) != "x"
    with pytest.raises(ArgumentError, match="at most, not 500"):
        pushed_name("n" * 500, TO)


@given(st.integers(1, 2**62), st.integers(0, 2**63 - 1), st.binary(min_size=16, max_size=16), st.text(max_size=50))
def test_doors_and_receipts_come_back_as_they_were(ticket: int, generation: int, root: bytes, text: str) -> None:
    assert Door.decode(Door(ticket).encode()) == Door(ticket)
    text = text.rstrip("\0")
    assert Receipt.decode(Receipt(generation, root, "size", text).encode()) == Receipt(generation, root, "size", text)
    assert len(Receipt(generation, root, "", "é" * 999).encode()) == RECEIPT_BYTES


@given(st.binary(max_size=RECEIPT_BYTES + 1))
def test_anything_else_is_an_error(data: bytes) -> None:
    for decode in (Door.decode, Receipt.decode):
        with pytest.raises(ProtocolError):
            decode(data)


@pytest.mark.parametrize("at", range(0, RECEIPT_BYTES, 7))
def test_one_wrong_byte_is_an_error(at: int) -> None:
    data = bytearray(Receipt(1, NO_ROOT, "", "text").encode())
    data[at] ^= 1
    with pytest.raises(ProtocolError):
        Receipt.decode(bytes(data))
