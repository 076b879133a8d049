"""Ranks of torch.distributed for tests: so many processes of one program, and what each of them prints."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PATIENCE_S = 150


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def run_ranks(
    forked: str, script: str, folder: Path, size: int, *arguments: str, killed: tuple[int, ...] = ()
) -> list[dict[str, Any]]:
    """What so many processes print, as JSON; each must end well, but for those that kill themselves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PCCL_")}
    ranks = [
        subprocess.Popen(
            [sys.executable, forked, str(HERE / script), str(folder), str(rank), str(size), *arguments],
            env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    found = []
    try:
        for rank, process in enumerate(ranks):
            output, errors = process.communicate(timeout=PATIENCE_S)
            expected = -signal.SIGKILL if rank in killed else 0
            assert process.returncode == expected, f"rank {rank}: exit code {process.returncode}\n{errors}"
            if rank not in killed:
                found.append(json.loads(output.splitlines()[-1]))
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    return found
