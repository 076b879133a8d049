"""Settings: arguments first, then the environment, then defaults; wrong ones are named."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import pccl
from pccl import tokens
from pccl.config import endpoint_of, group_of_environment, settings_from
from pccl.errors import ArgumentError


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("host", "tcp://host:29400"),
        ("host:5", "tcp://host:5"),
        ("tcp://host:5", "tcp://host:5"),
        ("10.0.0.1", "tcp://10.0.0.1:29400"),
        ("[::1]:5", "tcp://[::1]:5"),
        ("[::1]", "tcp://[::1]:29400"),
        ("::1", "tcp://[::1]:29400"),
        ("tcp://[fe80::1]:29500", "tcp://[fe80::1]:29500"),
    ],
)
def test_endpoints(address: str, endpoint: str) -> None:
    assert endpoint_of(address) == endpoint


@pytest.mark.parametrize(
    "address", ["", "tcp://", "udp://host:5", "host:", "host:x", "host:0", "host:65536", ":5", "[::1"]
)
def test_bad_endpoints(address: str) -> None:
    with pytest.raises(ArgumentError):
        endpoint_of(address)


def test_the_environment_fills_what_is_not_said() -> None:
    env = {
        "PCCL_COORDINATOR": "there:7",
        "PCCL_RUN": "llama",
        "PCCL_SECRET": "s",
        "PCCL_GROUP": "3",
        "PCCL_LISTEN": "127.0.0.1:0",
        "PCCL_ADVERTISE": "a:1, b:2",
    }
    found = settings_from(environ=env)
    assert (found.coordinator, found.run, found.secret, found.group) == ("tcp://there:7", "llama", "s", 3)
    assert (found.listen, found.advertise) == (("127.0.0.1:0",), ("a:1", "b:2"))
    said = settings_from("here:8", run="r", secret=b"t", group=0, listen="0.0.0.0:9", advertise=["c:3"], environ=env)
    assert (said.coordinator, said.run, said.secret, said.group) == ("tcp://here:8", "r", b"t", 0)
    assert (said.listen, said.advertise) == (("0.0.0.0:9",), ("c:3",))


def test_a_trace_is_asked_for_by_argument_or_environment(tmp_path: Path) -> None:
    def trace(**said: Any) -> str:
        return settings_from("host", environ={"PCCL_TRACE": "there"}, **said).trace

    assert (trace(), trace(trace="here"), trace(trace="")) == ("there", "here", "")
    assert trace(trace=tmp_path) == str(tmp_path)
    assert settings_from("host", environ={}).trace == ""


def test_defaults() -> None:
    found = settings_from("host", environ={})
    assert (found.run, found.secret, found.group, found.too_few) == ("default", "", 0, "wait")
    assert found.listen == ("[::]:0", "0.0.0.0:0")
    assert found.advertise == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"address": None}, "PCCL_COORDINATOR"),
        ({"too_few": "panic"}, "too_few"),
        ({"timeout": 0}, "timeout"),
        ({"op_timeout": float("nan")}, "op_timeout"),
        ({"group": -1}, "group"),
        ({"listen": "nowhere"}, "listen"),
        ({"environ": {"PCCL_GROUP": "x"}}, "PCCL_GROUP"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        settings_from(**({"address": "host", "environ": {}} | changes))


def test_connect_shows_what_it_takes() -> None:
    """The settings are its arguments: one list of them, with their defaults."""
    shown = inspect.signature(pccl.connect)
    assert list(shown.parameters) == list(inspect.signature(settings_from).parameters)
    assert shown.return_annotation == "Communicator" and "Joins a run" in (pccl.connect.__doc__ or "")
    with pytest.raises(TypeError, match="adress"):
        pccl.connect(adress="host")  # type: ignore[call-arg]


# -- secret or token ----------------------------------------------------------------------------------------------


def test_a_token_names_its_run_and_counts_as_a_secret() -> None:
    token = tokens.mint(b"secret", "llama", 60, 1_800_000_000)
    for given, env in (({"token": token}, {}), ({}, {"PCCL_TOKEN": token})):
        found = settings_from("there", listen="192.0.2.1:0", environ=env, **given)
        assert (found.run, found.token, found.secret, found.transport) == ("llama", token, "", "tls")
        assert token not in repr(found)
    assert settings_from("there", run="r", token=token, environ={"PCCL_RUN": "e"}).run == "r"
    assert "hidden" not in repr(settings_from("there", secret="hidden", environ={}))


def test_what_is_passed_outweighs_the_environment() -> None:
    token = tokens.mint(b"secret", "llama", 60, 1_800_000_000)
    assert settings_from("there", secret="s", environ={"PCCL_TOKEN": token}).token == ""
    assert settings_from("there", token=token, environ={"PCCL_SECRET": "s"}).secret == ""


def test_secret_or_token() -> None:
    with pytest.raises(ArgumentError, match="PCCL_SECRET and PCCL_TOKEN are both set"):
        settings_from("there", environ={"PCCL_SECRET": "s", "PCCL_TOKEN": "t"})
    with pytest.raises(ArgumentError, match="both given"):
        settings_from("there", secret="s", token="t", environ={})
    with pytest.raises(ArgumentError, match="this is no token of pccl"):
        settings_from("there", token="t", environ={})


def test_the_group_of_the_environment_counts_only_with_a_coordinator() -> None:
    assert group_of_environment({}) is None
    assert group_of_environment({"PCCL_GROUP": "3"}) is None
    assert group_of_environment({"PCCL_COORDINATOR": "there"}) == 0
    assert group_of_environment({"PCCL_COORDINATOR": "there", "PCCL_GROUP": "3"}) == 3
    with pytest.raises(ArgumentError, match="PCCL_GROUP"):
        group_of_environment({"PCCL_COORDINATOR": "there", "PCCL_GROUP": "x"})
