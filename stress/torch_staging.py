"""How much of staging is hidden behind the network: an all-reduce of a tensor in a GPU's memory, in four ways.

    python -m stress.torch_staging --ranks 2 --mib 1 8 64 256 1024 --rounds 7

network   the all-reduce of as much pinned host memory, and no copy
copies    the copies to and from pinned host memory, in one piece, one after the other, and no network
naive     tensor.cpu(), the all-reduce, tensor.copy_(), one after the other, through memory that is not pinned
pipeline  comm.all_reduce(tensor): pieces, copied on side streams while others are reduced

All ranks are on this host; they share its GPUs, rank by rank. Ways take turns, who begins changes from round to round.
Seconds are medians over rounds of the slowest rank's time, from a barrier to the end of everything on the stream.
"hidden" is the part of the copies that the pipeline does not pay for: (network + copies - pipeline) / copies. On one
host the network is memory, the worst case for hiding anything behind it: over a WAN only the first and the last piece
are left to see.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WAYS = ("network", "copies", "naive", "pipeline")
WARM_UP = 2
NO_GPU = 2  # exit code


def measure(folder: str, rank: int, size: int, mibs: list[float], rounds: int, kind: str) -> list[dict[str, Any]]:
    """Seconds of every round of one rank, for each size and way."""
    import torch
    import torch.distributed as dist

    import pccl.torch

    torch.set_num_threads(1)
    if kind == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    dist.init_process_group("pccl", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    group = dist.group.WORLD
    assert isinstance(group, pccl.torch.ProcessGroup)
    found = [of_size(group.member.comm, int(mib * 2**20), rounds, kind) for mib in mibs]
    dist.destroy_process_group()
    return found


def of_size(comm: Any, nbytes: int, rounds: int, kind: str) -> dict[str, Any]:
    """The same of one size."""
    import torch

    tensor = torch.ones(nbytes // 4, device=kind)
    pinned = torch.ones(nbytes // 4, pin_memory=kind == "cuda")

    def copies() -> None:
        pinned.copy_(tensor, non_blocking=True)
        tensor.copy_(pinned, non_blocking=True)

    def naive() -> None:
        host = tensor.to("cpu", copy=True)
        comm.all_reduce(host, op="avg")
        tensor.copy_(host)

    calls: dict[str, Callable[[], object]] = {
        "network": lambda: comm.all_reduce(pinned, op="avg"),
        "copies": copies,
        "naive": naive,
        "pipeline": lambda: comm.all_reduce(tensor, op="avg"),
    }
    seconds: dict[str, Any] = {way: [] for way in WAYS}
    for turn in range(rounds + WARM_UP):
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
            finish(kind)
            comm.barrier()
            begin = time.perf_counter()
            calls[way]()
            finish(kind)
            if turn >= WARM_UP:
                seconds[way].append(time.perf_counter() - begin)
    if not bool((tensor == 1).all()):
        raise SystemExit("the pipeline gave something else than the mean")
    return seconds


def finish(kind: str) -> None:
    """Waits for everything on the current stream."""
    import torch

    if kind == "cuda":
        torch.cuda.current_stream().synchronize()


def table(mibs: list[float], found: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """One row for each size; `found`: by rank."""
    rows = []
    for number, mib in enumerate(mibs):
        of = {
            way: statistics.median(map(max, zip(*(rank[number][way] for rank in found), strict=True))) for way in WAYS
        }
        hidden = (of["network"] + of["copies"] - of["pipeline"]) / of["copies"]
        rows.append({"mib": mib, **{f"{way}_s": of[way] for way in WAYS}, "hidden": hidden})
    return rows


def why_not() -> str:
    """Why there is nothing to measure here; "" if there is."""
    try:
        import torch
    except ImportError as error:
        return f"torch_staging needs torch: {error}"
    if torch.cuda.is_available():
        return ""
    return f"torch_staging needs a GPU: torch.cuda.is_available() is False (torch {torch.__version__})"


def run(options: argparse.Namespace) -> list[dict[str, float]]:
    """Starts the ranks; the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stress.torch_staging", *sys.argv[1:], "--folder", folder, "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank)], cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE)
            for rank in range(options.ranks)
        ]
        outputs = [rank.communicate()[0] for rank in ranks]
    if any(rank.returncode for rank in ranks):
        raise SystemExit(f"ranks ended with {[rank.returncode for rank in ranks]}")
    return table(options.mib, [json.loads(output) for output in outputs])


def main() -> None:
    """Starts the ranks, or is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=float, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)  # cpu: for tests
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and (why := why_not()):
        print(why, file=sys.stderr)
        raise SystemExit(NO_GPU)
    if options.rank is not None:
        found = measure(options.folder, options.rank, options.ranks, options.mib, options.rounds, options.device)
        print(json.dumps(found))
        return
    rows = run(options)
    if options.json:
        print(json.dumps({"ranks": options.ranks, "rounds": options.rounds, "device": options.device, "rows": rows}))
        return
    print(f"{'MiB':>8}" + "".join(f"{way + ', ms':>14}" for way in WAYS) + f"{'hidden':>9}{'naive/pipeline':>16}")
    for row in rows:
        times = "".join(f"{row[f'{way}_s'] * 1e3:14.2f}" for way in WAYS)
        print(f"{row['mib']:8g}{times}{row['hidden']:9.0%}{row['naive_s'] / row['pipeline_s']:16.2f}")


if __name__ == "__main__":
    main()
