"""One peer of the demo: data-parallel training of a small GPT in a group whose members may die and join at any time.

What it does with pccl, once per step:

1. `sync_state()`: a newcomer receives model, optimizer and place in the data; for all others it proves, step by step,
   that they still agree to the last bit.
2. `barrier()`, the *roster*: its result names the peers that took part, and that list is the same on all of them, so it
   can say whose share of the step's windows is whose.
3. Forward, backward, and an asynchronous all-reduce per gradient bucket while the backward pass is still running.
4. The optimizer's step: the same gradients and the same state on all peers, so the same new state.
5. `advance()`: the only point where newcomers enter.

There is no code for the loss of a peer. All-reduces that it leaves unfinished start again among the survivors, so in
the step of its death some buckets hold the mean of four peers, others that of three; all survivors hold the same.

Progress goes to standard output, one JSON object per line; run.py reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from buckets import GradientBuckets
from data import load_windows
from model import ModelConfig, build_model, loss_of
from torch import Tensor, nn

import pccl

TIMEOUT = 60.0  # seconds that any wait may take before the peer gives up with an error


@dataclass(frozen=True)
class Settings:
    """The command line; the same for all peers of a run, but for the last two."""

    steps: int
    batch: int
    layers: int
    width: int
    context: int
    buckets: int
    seed: int
    learning_rate: float
    evaluate_every: int
    die_at: int | None
    standby: bool


class Trainer:
    """Model, optimizer and the place in the data: what must be equal on all peers, and the arithmetic on it."""

    def __init__(self, settings: Settings) -> None:
        config = ModelConfig(layers=settings.layers, width=settings.width, context=settings.context)
        self.settings = settings
        self.train, self.validation = load_windows(settings.context, settings.seed)
        self.model = build_model(config, settings.seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
        for parameter in self.model.parameters():  # what AdamW would make at its first step, made now to have a name
            moments = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **moments}
        self.buckets = GradientBuckets(self.model, settings.buckets)
        self.counters = torch.zeros(2, dtype=torch.int64)  # steps done, windows consumed

    @property
    def step(self) -> int:
        """The number of steps done."""
        return int(self.counters[0])

    def state(self) -> dict[str, Tensor]:
        """Every tensor that must be equal on all peers, by name; a sync writes into them."""
        state = {"counters": self.counters}
        for name, parameter in self.model.named_parameters():
            state[name] = parameter.data
            state.update({f"{name}.{key}": value for key, value in self.optimizer.state[parameter].items()})
        return state

    def digest(self) -> str:
        """SHA-256 of the whole state."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def windows(self, place: int, peers: int) -> Tensor:
        """This peer's windows of the step, the place-th of `peers` shares; the shares of a step do not overlap."""
        return self.train.take(int(self.counters[1]) + place * self.settings.batch, self.settings.batch)

    def update(self, peers: int) -> None:
        """The optimizer's step, from the gradients in the buckets."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.counters += torch.tensor([1, peers * self.settings.batch])

    def validation_loss(self, place: int, peers: int) -> Tensor:
        """[sum of losses, windows] over this peer's share of a fixed set of validation windows."""
        windows = self.validation.take(0, 4 * self.settings.batch)[place::peers]
        with torch.no_grad():
            loss = loss_of(self.model, windows) if len(windows) else torch.zeros(())
        return torch.stack([loss * len(windows), torch.tensor(float(len(windows)))])

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / 10)
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        return self.settings.learning_rate * warm * (0.1 + 0.9 * cosine)


class Peer:
    """A Trainer in a group."""

    def __init__(self, comm: pccl.Communicator, trainer: Trainer) -> None:
        self.comm = comm
        self.trainer = trainer
        self.settings = trainer.settings
        self.new = True  # until the first sync

    def run(self) -> None:
        """Trains until all steps are done."""
        while True:
            self.sync()
            if self.trainer.step >= self.settings.steps:
                return
            self.train_step(*self.call_the_roll())
            self.comm.advance()

    def sync(self) -> None:
        """Makes the state equal on all peers. A newcomer's own does not count."""
        begun = time.monotonic()
        report = self.comm.sync_state(self.trainer.state())
        seconds = time.monotonic() - begun
        if self.new or report.received_bytes:
            say("sync", step=self.trainer.step, new=self.new, bytes=report.received_bytes, seconds=seconds)
        self.new = False

    def call_the_roll(self) -> tuple[int, int]:
        """(place of this peer, number of peers) in a list that all of them have alike."""
        roster = self.comm.barrier()
        return roster.peers.index(self.comm.peer_id), roster.world_size

    def train_step(self, place: int, peers: int) -> None:
        """One step of data-parallel training."""
        begun = time.monotonic()
        trainer, step = self.trainer, self.trainer.step
        trainer.buckets.begin(self.submit)
        loss = loss_of(trainer.model, trainer.windows(place, peers))
        loss.backward()
        results = trainer.buckets.finish()
        mb_per_s = results[-1].tensor.nbytes / results[-1].duration_s / 1e6
        trainer.update(peers)
        mean_loss = loss.detach().reshape(1)
        results.append(self.comm.all_reduce(mean_loss, op="avg", tag="loss"))
        outcome: dict[str, float] = {
            "peers": min(result.world_size for result in results),
            "epoch": max(result.epoch for result in results),
            "retries": sum(result.retries for result in results),
        }
        validation = self.evaluate(step, place, peers)
        outcome["seconds"] = time.monotonic() - begun
        say("step", step=step, loss=float(mean_loss), validation=validation, mb_per_s=mb_per_s, **outcome)

    def evaluate(self, step: int, place: int, peers: int) -> float | None:
        """Validation loss every few steps and after the last one; each peer works on its share."""
        if (step + 1) % self.settings.evaluate_every and step + 1 != self.settings.steps:
            return None
        total = self.trainer.validation_loss(place, peers)
        self.comm.all_reduce(total, op="sum", tag="validation")
        return float(total[0] / total[1])

    def submit(self, tag: str, gradients: Tensor) -> pccl.Work:
        """Begins the all-reduce of a bucket."""
        if self.trainer.step == self.settings.die_at and tag == f"grads{len(self.trainer.buckets) - 1}":
            await_execution(self.trainer.step, len(self.trainer.buckets))
        return self.comm.all_reduce(gradients, op="avg", tag=tag, async_op=True)


def await_execution(step: int, buckets: int) -> None:
    """Asks run.py to kill this process *now*: all buckets but the last are submitted, the others wait for that one."""
    say("kill-me", step=step, submitted=buckets - 1, buckets=buckets)
    time.sleep(TIMEOUT)
    sys.exit("nobody killed this peer")


def say(kind: str, **fields: Any) -> None:
    """Writes one progress record."""
    print(json.dumps({"kind": kind, **fields}), flush=True)


def parse() -> Settings:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"steps": 200, "batch": 8, "layers": 6, "width": 128, "context": 128, "buckets": 4, "seed": 1}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--evaluate-every", type=int, default=10)
    parser.add_argument("--die-at", type=int, help="step in which this peer asks to be killed")
    parser.add_argument("--standby", action="store_true", help="connect only when a line arrives on standard input")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    """Trains, then reports the digest of the final state."""
    settings = parse()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    trainer = Trainer(settings)
    say("ready", pid=os.getpid(), parameters=sum(parameter.numel() for parameter in trainer.model.parameters()))
    if settings.standby and not sys.stdin.readline():
        sys.exit("standard input was closed: nobody needs this peer")
    with pccl.connect(op_timeout=TIMEOUT) as comm:
        say("joined", epoch=comm.epoch, boundary=comm.boundary)
        Peer(comm, trainer).run()
        say("done", step=trainer.step, digest=trainer.digest())


if __name__ == "__main__":
    main()
