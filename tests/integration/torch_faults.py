"""One of three ranks to which things happen; started by test_torch.py. Rank 2 is killed in the end.

    PYTHONPATH=tests python tests/integration/torch_faults.py FOLDER RANK SIZE PORT

Prints, as JSON, what it has seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from integration.torch_peer import quiet

import pccl.torch
from pccl.coordinator.server import Coordinator
from pccl.errors import PcclError

SECOND = timedelta(seconds=1)


def error_of(call: Callable[[], Any]) -> list[str]:
    """The type of what a call raises, that of pccl's error behind it, and its text."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - any type may be expected
        cause = error.__cause__ if isinstance(error.__cause__, PcclError) else None
        return [type(error).__name__, type(cause).__name__ if cause else "", str(error)]
    return []


def ones(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(count, dtype=dtype)


def refusals(rank: int) -> dict[str, Any]:
    """Wrong arguments: nothing has happened, on any rank."""
    op = dist.ReduceOp
    calls: dict[str, Callable[[], Any]] = {
        "avg of integers": lambda: dist.all_reduce(ones(3, torch.int32), op.AVG),
        "bits of floats": lambda: dist.all_reduce(ones(3), op.BAND),
        "premul": lambda: dist.all_reduce(ones(3, torch.int32), dist._make_nccl_premul_sum(2.0)),
        "sparse bool": lambda: dist.all_reduce(torch.eye(3).bool().to_sparse()),
        "sparse min": lambda: dist.all_reduce(torch.eye(3).to_sparse(), op.MIN),
        "sparse codec": lambda: dist.group.WORLD.mean(torch.eye(3).to_sparse(), "int8"),
        "compressed": lambda: dist.all_reduce(torch.eye(3).to_sparse_csr()),
        "dtype": lambda: dist.all_reduce(torch.zeros(3, dtype=torch.float8_e4m3fn)),
        "sparse": lambda: dist.broadcast(torch.eye(3).to_sparse(), 0),
        "sizes": lambda: dist.reduce_scatter_tensor(ones(2), ones(7)),
        "lists": lambda: dist.all_gather([ones(2), ones(2)], ones(2)),
        "splits": lambda: dist.all_to_all_single(ones(3), ones(3), [1, 1, 2], [1, 1, 1]),
        "uneven": lambda: dist.all_to_all_single(ones(4), ones(4)),
    }
    return {name: error_of(call) for name, call in calls.items()}


def disagreements(rank: int, store: dist.Store) -> dict[str, Any]:
    """Ranks that call different things, or too late; the group goes on afterwards."""
    seen: dict[str, Any] = {"mismatch": error_of(lambda: dist.all_reduce(ones(4 + (rank == 0))))}
    shape = 4 + (rank == 1), 3
    seen["sparse mismatch"] = error_of(lambda: dist.all_reduce(torch.zeros(shape).to_sparse(1)))
    if rank == 0:
        store.wait(["late 1", "late 2"])
    seen["late"] = error_of(lambda: dist.barrier(timeout=SECOND))
    store.set(f"late {rank}", "")
    dist.barrier()
    return seen


def works(rank: int, store: dist.Store) -> dict[str, Any]:
    """What one sees of a call in flight, and of its future."""
    seen: dict[str, Any] = {}
    if rank == 0:
        work = dist.all_reduce(ones(3), async_op=True)
        seen["early"] = [work.is_completed(), error_of(lambda: work.wait(timedelta(milliseconds=50)))]
        store.set("go", "")
    else:
        store.wait(["go"])
        work = dist.all_reduce(ones(3), async_op=True)
    work.wait()
    seen["done"] = [work.is_completed(), work.is_success(), work.exception() is None, work.result()[0].tolist()]
    seen["future"] = work.get_future().wait()[0].tolist()

    def another(done: Any) -> Any:  # as PowerSGD's hook does: waits for an op in a callback of another one
        return done.value()[0] + dist.all_reduce(ones(2), async_op=True).get_future().wait()[0]

    seen["chained"] = dist.all_reduce(ones(2), async_op=True).get_future().then(another).wait().tolist()
    twice = [torch.eye(3).mul(rank + k).to_sparse() for k in range(2)]
    futures = [dist.all_reduce(tensor, async_op=True).get_future() for tensor in twice]
    seen["sparse futures"] = [future.wait()[0].to_dense().diagonal().tolist() for future in reversed(futures)]
    failing = dist.all_reduce(ones(2 + (rank == 0)), async_op=True).get_future()
    seen["failed future"] = error_of(failing.wait)
    strided = torch.zeros(6)[::2]
    work = dist.broadcast(strided.add_(rank == 1), 1, async_op=True)
    while not work.is_completed():
        pass
    seen["polled"] = strided.tolist()
    return seen


def losses(rank: int, store: dist.Store, address: str) -> dict[str, Any]:
    """Rank 2 is killed: groups that raise are of no use any more until they are configured, others go on."""
    ours = dist.group.WORLD
    assert isinstance(ours, pccl.torch.ProcessGroup)
    going_on = dist.new_group(backend="pccl", pg_options=pccl.torch.Options(on_peer_loss="retry"))
    dist.barrier()
    if rank == 2:
        store.wait(["begun 0", "begun 1"])
        os.kill(os.getpid(), signal.SIGKILL)
    begun = [dist.all_reduce(tensor, async_op=True) for tensor in (ones(3), torch.eye(3).to_sparse())]
    store.set(f"begun {rank}", "")
    seen: dict[str, Any] = {"lost": error_of(begun[0].wait), "sparse lost": error_of(begun[1].wait)}
    seen["refused"] = error_of(lambda: dist.all_reduce(ones(3)))
    tensor = ones(3)
    dist.all_reduce(tensor, group=going_on)
    seen["retried"] = tensor.tolist()
    seen["gather"] = error_of(lambda: dist.all_gather([ones(1)] * 3, ones(1), group=going_on))
    ours.configure(f"{address}/again", rank, 2)
    tensor = ones(3)
    ours.allreduce([tensor], dist.AllreduceOptions()).wait()
    seen["configured"] = [ours.rank(), ours.size(), tensor.tolist()]
    return seen


def elsewhere(rank: int, store: dist.Store) -> dict[str, Any]:
    """The two that are left join the run of another coordinator, as the environment says."""
    with contextlib.ExitStack() as stack:
        if rank == 0:
            store.set("coordinator", stack.enter_context(Coordinator(run="other", secret="s")).address)
        os.environ |= {"PCCL_COORDINATOR": store.get("coordinator").decode(), "PCCL_RUN": "other", "PCCL_SECRET": "s"}
        os.environ["PCCL_GROUP"] = "7"
        dist.init_process_group("pccl", store=dist.PrefixStore("elsewhere", store), rank=rank, world_size=2)
        tensor = ones(2)
        dist.all_reduce(tensor)
        view = dist.group.WORLD.member.comm.epoch
        dist.destroy_process_group()
        store.set(f"left {rank}", "")
        store.wait(["left 0", "left 1"])
    return {"elsewhere": [tensor.tolist(), view > 0]}


def main() -> None:
    """One rank."""
    rank, size, port = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    quiet()
    seen: dict[str, Any] = {}
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=60))
    for turn in range(2):  # a store may be used again
        dist.init_process_group("pccl", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
        seen |= refusals(rank) if turn == 0 else disagreements(rank, store) | works(rank, store)
        dist.barrier()
        if turn == 0:
            dist.destroy_process_group()
            seen["destroyed"] = dist.is_initialized()
    seen |= losses(rank, store, f"127.0.0.1:{port}")
    dist.destroy_process_group()
    seen |= elsewhere(rank, store)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
