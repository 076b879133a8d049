"""Hosts and ports: as people write them, as sockets have them, as others dial them."""

from __future__ import annotations

import pytest

from pccl.addresses import advertised, host_of, joined, split
from pccl.errors import ArgumentError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.0.2.7:29500", "192.0.2.7", 29500),
        ("[2001:db8::7]:1", "2001:db8::7", 1),
        ("[fe80::1%eth0]:65535", "fe80::1%eth0", 65535),
        ("host.example:0", "host.example", 0),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert split(text) == (host, port)
    assert joined(host, port) == text


@pytest.mark.parametrize("text", ["", "host", ":80", "[]:80", "host:", "host:x", "host:65536", "2001:db8::7:80", "h:²"])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        split(text)
    assert repr(text) in str(caught.value)


def test_the_host_of_a_socket_is_the_one_that_others_see() -> None:
    assert host_of(("192.0.2.7", 1)) == "192.0.2.7"
    assert host_of(("::ffff:192.0.2.7", 1, 0, 0)) == "192.0.2.7"
    assert host_of(("2001:db8::7", 1, 0, 0)) == "2001:db8::7"
    assert host_of(("fe80::1%eth0", 1, 0, 2)) == "fe80::1%eth0"


def test_an_advertised_address_is_numeric_and_has_a_port() -> None:
    assert advertised("192.0.2.7", 29500) == "192.0.2.7:29500"
    assert advertised("192.0.2.7:1", 29500) == "192.0.2.7:1"
    assert advertised("2001:db8::7", 29500) == "[2001:db8::7]:29500"
    assert advertised("[2001:db8::7]:1", 29500) == "[2001:db8::7]:1"
    with pytest.raises(ArgumentError, match=r"advertise: '192\.0\.2\.7:x'"):
        advertised("192.0.2.7:x", 29500)
