"""Ranks of a trainer that FSDP2 shards give their DTensors, and a receiver holds what all have."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import xxhash
from integration.conftest import SECRET
from integration.weights_fsdp import build
from integration.weights_run import WAIT_S, apart, commit_until

from pccl.weights import MemoryShadow, Receiver, Schema
from pccl.weights.base import fill


def test_ranks_of_fsdp_give_their_dtensors(cluster: Any, forked: str, tmp_path: Path) -> None:
    """Two processes, sharded by FSDP2, with rows that do not divide evenly; a receiver holds what both have."""
    with contextlib.closing(apart(cluster, 2)) as net:
        script, store, log = (
            str(path) for path in (Path(__file__).with_name("weights_fsdp.py"), tmp_path / "s", tmp_path / "l")
        )
        ranks = [
            subprocess.Popen(
                [sys.executable, forked, script, net.address, SECRET, store, str(rank), log],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for rank in (0, 1)
        ]  # fmt: skip
        try:
            lead, _ = (bytes.fromhex(rank.stdout.readline()) for rank in ranks)
            model = build().state_dict()
            shadow = MemoryShadow(Schema.of(model))
            fill(shadow, {name: value.detach() for name, value in model.items()})
            rx = net.keep(Receiver(net.comms[1], shadow, upstream=[lead]))
            for version in (1, 2):
                for rank in ranks:
                    print("go", file=rank.stdin, flush=True)
                said = [rank.stdout.readline().split() for rank in ranks]
                commit_until(rx, version)
                whole = b"".join(shadow.tensor(name).tobytes() for name in model)
                assert said == [[str(version), xxhash.xxh3_128_hexdigest(whole)]] * 2
        finally:
            for rank in ranks:
                rank.stdin.close()
            for rank in ranks:
                assert rank.wait(WAIT_S) == 0
                rank.stdout.close()
