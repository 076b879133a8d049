"""What a server was told, as far as managers of KV caches read it."""

from __future__ import annotations

from dataclasses import dataclass

DISAGG_TRANSFER_BACKEND_CHOICES = ["mooncake", "nixl", "fake"]


@dataclass
class ServerArgs:
    """By its command line."""

    model_path: str = "test/model"
    revision: str | None = None
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = 30000
    dist_init_addr: str | None = None
    tp_size: int = 1
    pp_size: int = 1
    dp_size: int = 1
    enable_dp_attention: bool = False
    kv_cache_dtype: str = "auto"
    load_balance_method: str = "round_robin"
    disaggregation_bootstrap_port: int = 8998


def add_disagg_transfer_backend_choices(choices: list[str]) -> None:
    DISAGG_TRANSFER_BACKEND_CHOICES.extend(choices)
