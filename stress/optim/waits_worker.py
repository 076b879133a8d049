"""What runs at the sites of waits.py: a replica whose inner steps only take time.

Runs as a script against the installed package. Takes its job as JSON in argv[1]; prints lines of JSON; ends with its
input, so also when the benchmark is killed.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def say(**answer: Any) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


def take_part(job: dict[str, Any]) -> None:
    """Trains in every mode that it is told, and says what that has cost."""
    import torch

    import pccl

    torch.set_num_threads(1)
    listen = f"{job['address']}:0"
    with pccl.connect(
        job["coordinator"], run=job["run"], secret=job["secret"], listen=listen, timeout=60, transport="tcp"
    ) as comm:
        say(ready=True)
        for line in sys.stdin:
            say(**timed(comm, json.loads(line), torch))


def timed(comm: Any, told: dict[str, Any], torch: Any) -> dict[str, Any]:
    """`periods` of training, of which those before `counted_from` do not count."""
    from pccl.optim import DiLoCo

    model = torch.nn.ParameterList(torch.zeros(told["numel"] // told["blocks"]) for _ in range(told["blocks"]))
    opt = DiLoCo(torch.optim.SGD(model.parameters(), lr=1e-3), model, comm, every=told["every"], **told["options"])
    grads = [torch.full_like(parameter, 1e-3 * (comm.rank + 1)) for parameter in model]
    waited, sent, begun = 0.0, 0, 0.0
    for step in range(told["every"] * told["periods"] + 1):
        if step == told["every"] * told["counted_from"] + 1:
            waited, sent, begun = opt.stats.wait_s, opt.stats.bytes_sent, time.monotonic()
        time.sleep(told["step_s"])  # the inner step
        for parameter, grad in zip(model, grads, strict=True):
            parameter.grad = grad
        opt.step()
    took = time.monotonic() - begun
    waited, sent = opt.stats.wait_s - waited, opt.stats.bytes_sent - sent
    opt.flush()
    return {"wait_s": waited, "took_s": took, "sent_bytes": sent, "digest": opt.stats.digest}


if __name__ == "__main__":
    take_part(json.loads(sys.argv[1]))
