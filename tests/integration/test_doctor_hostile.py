"""Strangers and traitors at the doctor's port: nobody without the secret gets anything, nobody with it does harm."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, TypeVar

import pytest
import uvloop
from integration import doctor_wire as wire

from pccl.doctor import client, connection, visit
from pccl.doctor.client import Wishes, examine
from pccl.doctor.door import NOTES_MAX, open_port
from pccl.doctor.errors import Busy, GaveUp
from pccl.doctor.facts import Measurements
from pccl.doctor.listener import Listener
from pccl.errors import PcclError, ProtocolError, Timeout

KEY = wire.key_of("a secret")
PATIENCE_S = 60.0
CROWD = 300

T = TypeVar("T")
Body = Callable[["Doctor"], Awaitable[None]]


class Doctor:
    """A listener in this process, and the clients of a test."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.noted = asyncio.Event()
        self.listener = Listener(open_port(["127.0.0.1:0"]), KEY, (), self.note)
        self.address = self.listener.address

    def note(self, text: str) -> None:
        """Keeps it, and wakes who waits for it."""
        self.notes.append(text)
        self.noted.set()

    async def apart(self, function: Callable[..., T], *args: Any) -> T:
        """What blocks, in a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(None, function, *args)

    async def examine(self) -> Measurements:
        """A real client."""
        with open_port(["127.0.0.1:0"]) as door:
            wishes = Wishes(0.1, 2, door, "127.0.0.1:0", ())
            return await examine(self.address, KEY, wishes, self.notes.append)

    async def serves(self) -> None:
        """A real client is served, and both sides see the same."""
        ours, theirs = await asyncio.gather(self.examine(), self.listener.examine_one(PATIENCE_S))
        assert ours == theirs


async def nothing() -> None:
    """Comes to an end."""


def with_doctor(body: Body) -> None:
    """Runs the body; afterwards everything is closed."""
    uvloop.run(nothing())  # libuv keeps what it opens for the first of all loops
    before = len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        doctor = Doctor()
        try:
            await asyncio.wait_for(body(doctor), PATIENCE_S)
        finally:
            await doctor.listener.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    uvloop.run(main())
    assert len(os.listdir("/proc/self/fd")) <= before


# -- strangers -------------------------------------------------------------------------------------------------------


def what_comes_back(address: str, data: bytes) -> bytes:
    """All that the doctor says to that."""
    with wire.dialled(address) as sock:
        try:
            sock.sendall(data)
        except ConnectionError:
            return b""
        return wire.receive(sock, 1 << 16)


def test_who_does_not_speak_the_language_gets_no_byte() -> None:
    chance = random.Random(1)
    noise = [b"\0" * 64, b"GET / HTTP/1.1\r\n\r\n", chance.randbytes(64), chance.randbytes(1 << 20), b"\xff" * 4096]

    async def body(doctor: Doctor) -> None:
        for data in noise:
            assert await doctor.apart(what_comes_back, doctor.address, data) == b""
        await doctor.serves()
        assert len([note for note in doctor.notes if "does not speak pccl doctor" in note]) == len(noise)

    with_doctor(body)


def test_another_version_learns_ours_and_no_more() -> None:
    async def body(doctor: Doctor) -> None:
        answer = await doctor.apart(what_comes_back, doctor.address, wire.hello(version=7))
        assert answer[:12] == wire.challenge()[:12]
        assert len(answer) == 44
        assert any("speaks version 7 of pccl doctor" in note for note in doctor.notes)

    with_doctor(body)


def test_a_wrong_secret_gets_a_refusal_without_a_signature() -> None:
    async def body(doctor: Doctor) -> None:
        for purpose in (wire.SESSION, wire.STREAM, wire.CALL):
            with wire.dialled(doctor.address) as sock:
                answer, _ = await doctor.apart(wire.shake, sock, b"another key" * 3, wire.hello(purpose))
                assert answer == wire.WRONG_SECRET
                assert await doctor.apart(wire.receive, sock, 1) == b""
        await doctor.serves()

    with_doctor(body)


def test_a_proof_is_good_for_one_connection() -> None:
    """Whoever has listened to a handshake cannot play it again."""

    def record(address: str) -> tuple[bytes, bytes]:
        with wire.dialled(address) as sock:
            first = wire.hello(wire.CALL)
            _, said = wire.shake(sock, KEY, first)
            return first, wire.proof(KEY, said)

    def play(address: str, first: bytes, proof: bytes) -> int:
        with wire.dialled(address) as sock:
            sock.sendall(first)
            wire.receive(sock, 44)
            sock.sendall(proof)
            return wire.receive(sock, 36)[0]

    async def body(doctor: Doctor) -> None:
        first, proof = await doctor.apart(record, doctor.address)
        assert await doctor.apart(play, doctor.address, first, proof) == wire.WRONG_SECRET

    with_doctor(body)


def test_a_handshake_has_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HANDSHAKE_S", 1.0)

    def cut_short(address: str, kept: int) -> tuple[bytes, float]:
        begun = time.monotonic()
        with wire.dialled(address) as sock:
            sock.sendall(wire.hello()[:kept])
            return wire.receive(sock, 1 << 16), time.monotonic() - begun

    async def body(doctor: Doctor) -> None:
        kept = (0, 9, 10, 63, 64)
        answers = await asyncio.gather(*(doctor.apart(cut_short, doctor.address, count) for count in kept))
        assert [len(answer) for answer, _ in answers] == [0, 0, 0, 0, 44]
        assert all(0.9 < took_s < 10 for _, took_s in answers)
        assert sum("said nothing in time" in note for note in doctor.notes) == 5

    with_doctor(body)


def test_a_crowd_that_says_nothing_keeps_nobody_out() -> None:
    async def body(doctor: Doctor) -> None:
        with ExitStack() as stack:
            for _ in range(CROWD):
                stack.enter_context(await doctor.apart(socket.create_connection, ("127.0.0.1", doctor.listener.port)))
            await doctor.serves()

    with_doctor(body)


def test_a_listener_without_descriptors_waits_for_some() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def body(doctor: Doctor) -> None:
        used = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, hard))
        try:
            with ExitStack() as stack:
                stack.enter_context(wire.dialled(doctor.address))
                with pytest.raises(OSError, match="Too many open files"):
                    while True:
                        stack.enter_context(open(os.devnull, "rb", buffering=0))  # noqa: ASYNC230 - does not block
                await doctor.noted.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert doctor.notes[0] == "cannot accept: Too many open files"
        await doctor.serves()

    with_doctor(body)


def test_strangers_do_not_fill_the_log() -> None:
    async def body(doctor: Doctor) -> None:
        for _ in range(NOTES_MAX + 20):
            await doctor.apart(what_comes_back, doctor.address, b"x" * 64)
        assert len(doctor.notes) == NOTES_MAX + 1
        assert "no caller that is turned away is told of" in doctor.notes[-1]

    with_doctor(body)


# -- those who know the secret ---------------------------------------------------------------------------------------

HOST = ["h", "0", 1, 1, "", "3", "6", "bbr", [], [], None, None, 1024, 1024]


class Member:
    """A client that is let in, written by hand, and the listener's examination of it."""

    def __init__(self, doctor: Doctor) -> None:
        self.doctor = doctor
        self.stack = ExitStack()

    async def __aenter__(self) -> Member:
        self.sock = self.stack.enter_context(wire.dialled(self.doctor.address))
        self.remote = "{}:{}".format(*self.sock.getsockname())
        answer, said = await self.doctor.apart(wire.shake, self.sock, KEY, wire.hello())
        assert answer == wire.WELCOME
        self.talk = wire.Talk(self.sock, KEY, said, "client")
        self.talk.say("Open", HOST, 0.1)
        self.examination = asyncio.ensure_future(self.doctor.listener.examine_one(PATIENCE_S))
        kind, self.session, *_ = await self.doctor.apart(self.talk.hear)
        assert kind == "Welcome"
        return self

    async def __aexit__(self, *_: object) -> None:
        """Goes without a word; the listener notices."""
        self.stack.close()
        with pytest.raises(PcclError):
            await self.examination

    async def dial(self, first: bytes) -> int:
        """The answer to one more connection, which stays open."""
        sock = self.stack.enter_context(wire.dialled(self.doctor.address))
        return (await self.doctor.apart(wire.shake, sock, KEY, first))[0]


def test_one_client_at_a_time() -> None:
    async def body(doctor: Doctor) -> None:
        async with Member(doctor):
            with pytest.raises(Busy, match=f"{doctor.address} is examining another machine"):
                await doctor.examine()
        await doctor.serves()

    with_doctor(body)


def test_streams_and_calls_must_be_announced() -> None:
    async def body(doctor: Doctor) -> None:
        for purpose in (wire.STREAM, wire.CALL):
            with wire.dialled(doctor.address) as sock:
                assert (await doctor.apart(wire.shake, sock, KEY, wire.hello(purpose)))[0] == wire.NOT_EXPECTED
        async with Member(doctor) as member:
            assert await member.dial(wire.hello(wire.STREAM, member.session)) == wire.NOT_EXPECTED
            assert await member.dial(wire.hello(wire.CALL)) == wire.NOT_EXPECTED
            assert await member.dial(wire.hello(wire.CALL, os.urandom(16))) == wire.NOT_EXPECTED
            assert await member.dial(wire.hello(wire.CALL, member.session)) == wire.WELCOME
            member.talk.say("FlowPlan", "client", 2, 0.1, 0.0)
            assert await doctor.apart(member.talk.hear) == ["FlowReady"]
            answers = [await member.dial(wire.hello(wire.STREAM, member.session, index)) for index in (2, 0, 0)]
            assert answers == [wire.NOT_EXPECTED, wire.WELCOME, wire.NOT_EXPECTED]

    with_doctor(body)


def too_long(talk: wire.Talk) -> None:
    talk.sock.sendall(b"\0\0\0\x80")


def wrongly_signed(talk: wire.Talk) -> None:
    talk.sock.sendall(b"\x02\0\0\0\x91\xa0" + bytes(16))


def said_twice(talk: wire.Talk) -> None:
    """A frame that was recorded and played again: its number has passed."""
    frame = b"\x06\0\0\0" + b"\x91\xa4Ping"
    frame += talk.signature(0, frame[4:])
    talk.sock.sendall(frame)
    assert talk.hear()[0] == "Pong"
    talk.sock.sendall(frame)


def nonsense(talk: wire.Talk) -> None:
    talk.say_bytes(b"\xc1" * 100)


def out_of_turn(talk: wire.Talk) -> None:
    talk.say("FlowReady")


def longer_than_opened(talk: wire.Talk) -> None:
    talk.say("FlowPlan", "listener", 1, 30.0, 0.0)


def too_many_streams(talk: wire.Talk) -> None:
    talk.say("FlowPlan", "listener", 1000, 0.1, 0.0)


def never_dialled(talk: wire.Talk) -> None:
    talk.say("FlowPlan", "listener", 2, 0.1, 0.0)
    assert talk.hear() == ["FlowReady"]


def says_more_than_agreed(talk: wire.Talk) -> None:
    """Announces a flow, and does not wait for its end."""
    talk.say("FlowPlan", "listener", 2, 0.1, 0.0)
    assert talk.hear() == ["FlowReady"]
    talk.say("Ping")


def silent(talk: wire.Talk) -> None:
    """It has said Open and says nothing more."""


#: What is waited for in vain, and is not to take long in a test.
PATIENCE = {never_dialled: "STREAMS_S", silent: "IDLE_S"}


@pytest.mark.parametrize(
    ("betray", "error", "text"),
    [
        (too_long, ProtocolError, "announced a message of 2147483648 bytes"),
        (wrongly_signed, ProtocolError, "was changed on the way: its signature is wrong"),
        (said_twice, ProtocolError, "its signature is wrong"),
        (nonsense, ProtocolError, "does not decode"),
        (out_of_turn, ProtocolError, "said FlowReady out of turn"),
        (longer_than_opened, ProtocolError, "said FlowPlan out of turn"),
        (too_many_streams, ProtocolError, "does not decode"),
        (never_dialled, Timeout, "announced 2 connections and did not make all of them"),
        (says_more_than_agreed, ProtocolError, "said Ping out of turn"),
        (silent, Timeout, "said nothing for 0.6 s"),
    ],
)
def test_a_client_that_misbehaves_ends_its_own_examination(
    betray: Callable[[wire.Talk], None], error: type[PcclError], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if betray in PATIENCE:
        monkeypatch.setattr(visit, PATIENCE[betray], 0.5)

    async def body(doctor: Doctor) -> None:
        async with Member(doctor) as member:
            await doctor.apart(betray, member.talk)
            last = await doctor.apart(member.talk.hear)
            assert last[0] == "Failed"
            assert text in last[1]
            with pytest.raises(error, match=f"{member.remote}.*{text}"):
                await asyncio.shield(member.examination)
        monkeypatch.undo()
        await doctor.serves()

    with_doctor(body)


def test_the_listener_dials_only_numbers() -> None:
    """It asks no resolver on a client's behalf."""

    async def body(doctor: Doctor) -> None:
        async with Member(doctor) as member:
            member.talk.say("CallMe", ["localhost:1", "127.0.0.1:1", "nonsense:99999"])
            kind, calls = await doctor.apart(member.talk.hear)
            assert kind == "Called"
            assert [(call[1], call[2]) for call in calls] == [
                ("localhost:1", "unreachable"),
                ("127.0.0.1:1", "refused"),
                ("nonsense:99999", "unreachable"),
            ]

    with_doctor(body)


def test_a_listener_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.4)

    async def body(doctor: Doctor) -> None:
        """The door lets the client in; nobody examines it."""
        with pytest.raises(Timeout, match=rf"{doctor.address} said nothing for 0\.4 s"):
            await doctor.examine()

    with_doctor(body)


def test_a_listener_that_gives_up_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*args: object) -> None:
        raise PcclError("the disk is full")

    monkeypatch.setattr(visit, "call_all", refuse)

    async def body(doctor: Doctor) -> None:
        serving = asyncio.ensure_future(doctor.listener.examine_one(PATIENCE_S))
        with pytest.raises(GaveUp, match=f"{doctor.address} gave up: the disk is full"):
            await doctor.examine()
        with pytest.raises(PcclError, match="the disk is full"):
            await serving

    with_doctor(body)
