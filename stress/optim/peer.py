"""peer.py - one peer of convergence.py: trains the Gpt of markov.py as its job says, and tells every round.

Runs as a script: `python peer.py`. A line of JSON on standard input is a job (see Job); its lines of JSON on standard
output are `{"round": [fragment, number], ...}` for each round, `{"watch": [step, bytes sent, loss]}`, `{"gate": step}`
where it waits for a line before it goes on, and `{"end": ...}` with the loss. Then it waits for the next job, which
saves importing torch; each job is a membership of its own, in a run of its own. It judges nothing.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))  # at the end: pccl itself is the installed one

import torch

import pccl
from pccl import optim
from stress.optim import markov

PATIENCE_S = 120.0
#: Modes whose replicas differ by design: in the end they are averaged.
DRIFTING = ("gossip", "eager")
DIGEST_EVERY = 10  # steps, of a data parallel peer


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is to do.

    `kind`: "alone", "parallel" (gradients are all-reduced at every step) or "diloco" (with `options`, see
    `options_of`). `address`: the coordinator's. `place`: whose data it reads, `sequences` per step. `gates`: steps
    before which it waits for a line. `leave_after`: so many steps, then it leaves the run; 0: never. `watch_every`:
    steps between two looks at the loss; 0: none.
    """

    kind: str
    seed: int
    place: int
    sequences: int
    address: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    gates: tuple[int, ...] = ()
    leave_after: int = 0
    watch_every: int = 0


def say(**facts: Any) -> None:
    """One line, at once."""
    print(json.dumps(facts), flush=True)


def options_of(said: dict[str, Any]) -> dict[str, Any]:
    """Arguments of DiLoCo from JSON: `outer` and `mixing` as [name in pccl.optim, argument, ...]."""
    options = dict(said)
    for name in ("outer", "mixing"):
        if name in options:
            kind, *arguments = options[name]
            options[name] = getattr(optim, kind)(*arguments)
    if "sparse" in options:
        options["sparse"] = tuple(options["sparse"])
    return options


def crc(*tensors: torch.Tensor) -> str:
    """Of all their bytes."""
    value = 0
    for tensor in tensors:
        value = zlib.crc32(tensor.detach().contiguous().numpy().data, value)
    return f"{value:08x}"


class Trainer:
    """Model, batches and the inner optimizer of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = markov.Gpt(job.seed)
        self.inner = markov.adamw(self.model)
        self._batches = markov.Batches(job.seed, [job.place], job.sequences)

    def gradients(self, step: int) -> None:
        """Of the next batch; sets the learning rate of the step, counted from 0."""
        for group in self.inner.param_groups:
            group["lr"] = markov.learning_rate(step)
        self.inner.zero_grad()
        self.model(self._batches.next()).backward()

    def wait_at_gate(self, step: int) -> None:
        """Until the parent says go."""
        if step in self.job.gates:
            say(gate=step)
            sys.stdin.readline()

    def watch(self, step: int, sent: int, outer: AbstractContextManager[None] | None = None) -> None:
        """Tells the loss after so many steps, that of Theta where there is one."""
        if self.job.watch_every and step % self.job.watch_every == 0:
            with outer or nullcontext():
                say(watch=[step, sent, markov.evaluate(self.model)])


# -- the three kinds ---------------------------------------------------------------------------------------------------


def alone(trainer: Trainer, comm: None) -> dict[str, Any]:
    """Without anybody."""
    for step in range(markov.STEPS):
        trainer.gradients(step)
        markov.clip(trainer.model)
        trainer.inner.step()
        trainer.watch(step + 1, 0)
    return {"loss": markov.evaluate(trainer.model)}


def parallel(trainer: Trainer, comm: pccl.Communicator) -> dict[str, Any]:
    """All replicas make every step together."""
    parameters = list(trainer.model.parameters())
    sent = 0
    for step in range(markov.STEPS):
        trainer.gradients(step)
        sent += comm.all_reduce([parameter.grad for parameter in parameters], op="avg").bytes_sent
        markov.clip(trainer.model)
        trainer.inner.step()
        trainer.watch(step + 1, sent)
        if (step + 1) % DIGEST_EVERY == 0:
            say(round=[0, step // DIGEST_EVERY], step=step + 1, peers=comm.world_size, digest=crc(*parameters))
    return {"loss": markov.evaluate(trainer.model), "bytes_sent": sent}


def diloco(trainer: Trainer, comm: pccl.Communicator) -> dict[str, Any]:
    """As the options say; the loss is that of Theta."""
    opt = optim.DiLoCo(trainer.inner, trainer.model, comm, **options_of(trainer.job.options))
    opt.add_round_hook(lambda done: tell_round(opt, done))
    entered, repaired = opt.global_step, opt.stats.repaired_bytes
    while opt.global_step < markov.STEPS:
        trainer.wait_at_gate(opt.global_step)
        trainer.gradients(opt.global_step)
        markov.clip(trainer.model)
        opt.step()
        opt.add_tokens(trainer.job.sequences * markov.CONTEXT)
        trainer.watch(opt.global_step, opt.stats.bytes_sent, opt.outer_params())
        if opt.global_step == trainer.job.leave_after:
            return {"left": opt.global_step}
    opt.flush()
    drifting = trainer.job.options.get("mode") in DRIFTING
    spread = apart(opt, comm) if drifting else 0.0
    if drifting:
        opt.consensus()
    with opt.outer_params():
        loss = markov.evaluate(trainer.model)
    stats = opt.stats
    return {
        "loss": loss, "spread": spread, "entered": entered, "rounds": stats.rounds, "retries": stats.retries,
        "dropped": stats.dropped, "bytes_sent": stats.bytes_sent, "bytes_per_token": stats.bytes_per_token,
        "wait_s": stats.wait_s, "repaired_bytes": stats.repaired_bytes - repaired, "digest": stats.digest,
    }  # fmt: skip


def tell_round(opt: optim.DiLoCo, done: optim.Round) -> None:
    """What a committed round was, with the digest of what it left."""
    say(
        round=[done.fragment, done.number], step=done.step, peers=len(done.peers), retries=done.retries,
        excluded=len(done.excluded), bytes_sent=done.bytes_sent, cosine=done.cosine,
        digest=outer_digest(opt, done.fragment),
    )  # fmt: skip


def outer_digest(opt: optim.DiLoCo, index: int) -> str:
    """Of a fragment's Theta and outer state."""
    fragment = opt._sync.fragments[index]
    state = [value for value in fragment.outer_state().values() if isinstance(value, torch.Tensor)]
    return crc(fragment.theta, *state)


def apart(opt: optim.DiLoCo, comm: pccl.Communicator) -> float:
    """How far the replicas' Theta are from each other: the root mean square of theta - mean over that of the mean."""
    own = torch.cat([fragment.theta for fragment in opt._sync.fragments])
    rows = comm.all_gather(own, tag="apart").tensor
    mean = rows.mean(dim=0)
    return float(((rows - mean).square().sum(dim=1).mean() / mean.square().sum()).sqrt())


KINDS: dict[str, Callable[[Trainer, Any], dict[str, Any]]] = {"alone": alone, "parallel": parallel, "diloco": diloco}


def work(job: Job) -> None:
    """One job; model and data are ready before it joins."""
    trainer = Trainer(job)
    markov.tokens()
    if job.kind == "alone":
        say(end=alone(trainer, None))
        return
    with pccl.connect(job.address, listen="127.0.0.1:0", timeout=PATIENCE_S, op_timeout=PATIENCE_S) as comm:
        end = KINDS[job.kind](trainer, comm)
        if "left" not in end:
            comm.barrier(tag="the end")
    say(end=end)


def main() -> None:
    """Jobs until standard input ends."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for line in sys.stdin:
        work(Job(**json.loads(line)))


if __name__ == "__main__":
    main()
