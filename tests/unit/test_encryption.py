"""Which transport a peer takes: plain on one host or where it was asked for, else TLS."""

from __future__ import annotations

from typing import Any

import pytest

import pccl
from pccl import _native
from pccl.config import Settings, settings_from
from pccl.errors import ArgumentError

FILES = ("ca.pem", "cert.pem", "key.pem")


def settings(address: str = "tcp://192.0.2.1:29400", environ: dict[str, str] | None = None, **options: Any) -> Settings:
    return settings_from(address, environ=environ or {}, **{"secret": "x", **options})


@pytest.fixture(autouse=True)
def there_is_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "tls_missing", lambda: "")


@pytest.mark.parametrize(
    ("options", "transport"),
    [
        ({}, "tls"),
        ({"secret": ""}, "auto"),
        ({"insecure": True}, "auto"),
        ({"environ": {"PCCL_INSECURE": "1"}}, "auto"),
        ({"environ": {"PCCL_INSECURE": "1"}, "insecure": False}, "tls"),
        ({"address": "tcp://127.0.0.1:29400"}, "auto"),
        ({"address": "localhost"}, "auto"),
        ({"address": "tcp://[::1]:29400"}, "auto"),
        ({"address": "tcp://127.0.0.1:29400", "advertise": "192.0.2.7"}, "tls"),
        ({"listen": "127.0.0.1:0"}, "auto"),
        ({"transport": "tcp"}, "tcp"),
        ({"transport": "auto"}, "auto"),
        ({"address": "localhost", "transport": "tls"}, "tls"),
        ({"address": "localhost", "tls": FILES}, "tls"),
        ({"secret": "", "tls": FILES}, "tls"),
    ],
)
def test_the_choice(options: dict[str, Any], transport: str) -> None:
    assert settings(**options).transport == transport


def test_files_from_the_environment() -> None:
    environ = {"PCCL_TLS_CA": "a", "PCCL_TLS_CERT": "b", "PCCL_TLS_KEY": "c"}
    tls = settings(environ=environ).tls
    assert tls is not None and (tls.ca, tls.cert, tls.key) == ("a", "b", "c")


@pytest.mark.parametrize(
    "options",
    [
        {"transport": "tls", "insecure": True},
        {"transport": "tls", "secret": ""},
        {"transport": "tcp", "tls": FILES},
        {"insecure": True, "tls": FILES},
        {"tls": ("ca.pem", "", "key.pem")},
        {"environ": {"PCCL_TLS_CA": "ca.pem"}},
    ],
)
def test_what_contradicts_itself(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"TLS|tls|certificates"):
        settings(**options)


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "tls_missing", lambda: "TLS needs OpenSSL 3")
    with pytest.raises(pccl.TlsMissing, match=r"TLS needs OpenSSL 3.*insecure=True"):
        settings()
    assert settings(insecure=True).transport == "auto"
