"""What torch.distributed costs on top of pccl: the same all-reduce, called natively and through the backend, in turns.

    python -m stress.torch_bench --ranks 2 --mib 64 --rounds 15

All on this host. Both calls use the same communicator and the same memory. gloo, if asked for, is a third in the turns.
Who begins changes from round to round. Prints medians over rounds of the slowest rank's time, and their ratio; with
--json as one object.
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


def measure(folder: str, rank: int, size: int, mib: float, rounds: int, gloo: bool) -> dict[str, list[float]]:
    """Seconds of every round of one rank."""
    import torch
    import torch.distributed as dist

    import pccl.torch

    torch.set_num_threads(1)
    dist.init_process_group("pccl", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    group = dist.group.WORLD
    assert isinstance(group, pccl.torch.ProcessGroup)
    comm = group.member.comm
    tensor = torch.ones(int(mib * 2**20) // 4)
    calls: dict[str, Callable[[], object]] = {
        "native": lambda: comm.all_reduce(tensor, op="avg"),
        "torch": lambda: dist.all_reduce(tensor, dist.ReduceOp.AVG),
    }
    if gloo:
        other = dist.new_group(backend="gloo")
        calls["gloo"] = lambda: dist.all_reduce(tensor, dist.ReduceOp.SUM, group=other)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            tensor.fill_(1.0)
            comm.barrier()
            begin = time.perf_counter()
            calls[name]()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - begin)
    dist.destroy_process_group()
    return seconds


def main() -> None:
    """Starts the ranks, or is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=float, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gloo", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        found = measure(options.folder, options.rank, options.ranks, options.mib, options.rounds, options.gloo)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stress.torch_bench", *sys.argv[1:], "--folder", folder, "--rank"]
        ranks = [
            subprocess.Popen([*command, str(rank)], cwd=Path(__file__).resolve().parents[1], stdout=subprocess.PIPE)
            for rank in range(options.ranks)
        ]
        found = [json.loads(rank.communicate()[0]) for rank in ranks]
    medians = {name: statistics.median(map(max, zip(*(of[name] for of in found), strict=True))) for name in found[0]}
    ratio = medians["torch"] / medians["native"]
    if options.json:
        known = {"op": "torch_all_reduce", "ranks": options.ranks, "mib": options.mib, "rounds": options.rounds}
        times = {f"{name}_ms": round(median * 1e3, 3) for name, median in medians.items()}
        print(json.dumps({**known, **times, "ratio": round(ratio, 3)}))
        return
    for name, median in medians.items():
        print(f"{name}: {median * 1e3:.3f} ms")
    print(f"{options.mib:g} MiB, {options.ranks} ranks: torch / native = {ratio:.3f}")


if __name__ == "__main__":
    main()
