"""Weights for rollout workers in two regions: what changed in a step, and nothing else.

A trainer takes AdamW steps on a small bf16 model, on tasks whose reward it only samples, as GRPO does. Each region has
a relay and two rollout workers behind it. One worker is killed and comes back to its shadow; one comes late. In the end
all of them hold the trainer's very bytes.

    python examples/06_rl_weight_sync.py              80 ms and 100 Mbit/s apart, if this host lets us (stress/wan)
    python examples/06_rl_weight_sync.py --local      without a network between them
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from stage import WAIT_S, Popen, Process, say, stage

import pccl
from pccl.coordinator.server import Coordinator
from pccl.weights import DeltaLog, FileShadow, MemoryShadow, Publisher, Receiver, Relay, Schema, SigningKey, base

SITES = ("hub", "trainer", "east", "west")


def policy(width: int = 256) -> torch.nn.Module:
    """The public base: the same on every machine."""
    torch.manual_seed(0)
    layers = [torch.nn.Embedding(512, width)]
    for _ in range(4):
        layers += [torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(width, 64)).bfloat16()


def elements(model: torch.nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as flat unsigned integers, in the model's own memory."""
    return {name: value.view(torch.int16).numpy().view("u2").reshape(-1) for name, value in model.state_dict().items()}


def digest(weights: dict[str, np.ndarray[Any, Any]]) -> str:
    """Of all bytes."""
    return xxhash.xxh3_128_hexdigest(b"".join(array.tobytes() for array in weights.values()))[:12]


# -- the trainer --


class Trainer:
    """fp32 masters, bf16 weights, and the loss of a group of sampled answers weighed by their advantage."""

    def __init__(self) -> None:
        self.model = policy()
        self.masters = [parameter.detach().float().requires_grad_() for parameter in self.model.parameters()]
        self.adamw = torch.optim.AdamW(self.masters, lr=2e-6, weight_decay=0.0)

    def step(self) -> None:
        """One step of GRPO's kind: questions, eight answers to each, their rewards against the group's mean."""
        questions = torch.randint(0, 512, (16, 4))
        logits = self.model(questions).float().mean(1)
        answers = torch.distributions.Categorical(logits=logits).sample((8,))
        rewards = (answers == questions.sum(1) % 64).float()
        advantage = (rewards - rewards.mean(0)) + 0.1 * torch.randn_like(rewards)
        chosen = torch.log_softmax(logits, -1).expand(8, -1, -1).gather(-1, answers[..., None])[..., 0]
        self.model.zero_grad()
        (-(advantage * chosen).mean()).backward()
        for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
            master.grad = parameter.grad.float()
        self.adamw.step()
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.model.parameters(), strict=True):
                parameter.copy_(master)


# -- what runs at the sites, each in a process of its own; all end with their input --


def hub(options: dict[str, Any]) -> None:
    """The coordinator; no weights pass through it."""
    with Coordinator(bind=options["coordinator"], secret=options["secret"], min_peers=3):
        say(ready=True)
        sys.stdin.read()


def train(comm: pccl.Communicator, options: dict[str, Any]) -> None:
    """A step and a version for each line of input."""
    trainer = Trainer()
    weights = trainer.model.state_dict()
    key = SigningKey(bytes.fromhex(options["key"]))
    log = DeltaLog(options["scratch"])
    with Publisher(comm, Schema.of(weights), base=weights, log=log, sign=key) as pub:
        say(id=comm.peer_id.hex())
        for _ in sys.stdin:
            trainer.step()
            ticket = pub.publish(weights)
            stats = ticket.wait("durable", WAIT_S)
            facts = {"bytes": stats.bytes, "dense": stats.dense_bytes, "changed": stats.changed}
            say(version=ticket.version, digest=digest(elements(trainer.model)), **facts)


def relay(comm: pccl.Communicator, options: dict[str, Any]) -> None:
    """Passes on what comes, and answers for its region."""
    weights = policy().state_dict()
    zero = MemoryShadow(Schema.of(weights))
    base.fill(zero, weights)
    say(id=comm.peer_id.hex())
    upstream, key = [bytes.fromhex(sys.stdin.readline())], bytes.fromhex(options["public"])
    with Relay(comm, zero.schema, base=zero, log=DeltaLog(options["scratch"]), upstream=upstream, pubkey=key):
        sys.stdin.read()


def worker(comm: pccl.Communicator, options: dict[str, Any]) -> None:
    """An engine that stands still only while patches are written to it."""
    engine = policy()
    shadow = FileShadow(Path(options["scratch"]) / "weights", Schema.of(engine.state_dict()))
    if shadow.at is None:
        base.fill(shadow, engine.state_dict())
    flat = elements(engine)
    for number, tensor in enumerate(shadow.schema.tensors):
        flat[tensor.name][:] = shadow.schema.view(shadow.arena, number)
    say(begins_at=shadow.at.version)
    upstream, key = [bytes.fromhex(sys.stdin.readline())], bytes.fromhex(options["public"])
    with Receiver(comm, shadow, upstream=upstream, pubkey=key) as rx:
        threading.Thread(target=lambda: (sys.stdin.read(), rx.close()), daemon=True).start()
        for update in rx.updates():
            patches = list(update.patches())
            with update.commit():
                began = time.perf_counter()  # here the engine is paused
                for patch in patches:
                    flat[patch.name][patch.index] = patch.values
                pause_s = time.perf_counter() - began
            say(version=rx.version, bytes=update.stats.bytes, pause_ms=pause_s * 1e3, digest=digest(flat))


def take_part(role: str, options: dict[str, Any]) -> None:
    """Trainer and relays are members of the run; workers are guests, who come and go without anybody noticing."""
    torch.set_num_threads(1)
    if role == "hub":
        hub(options)
        return
    settings = {"secret": options["secret"], "listen": options["listen"], "timeout": WAIT_S, "transport": "tcp"}
    with pccl.connect(options["coordinator"], enter=role != "worker", **settings) as comm:
        {"trainer": train, "relay": relay, "worker": worker}[role](comm, options)


# -- what happens --


def version_of(process: Process, version: int) -> dict[str, Any]:
    """What it says of that version, or of a later one."""
    return process.until(lambda news: news["version"] >= version)


class Show:
    """The whole of it: a trainer, two relays in a chain, two workers behind each, and what befalls them."""

    def __init__(self, popen: Popen, addresses: dict[str, str], scratch: Path, port: int) -> None:
        key = bytes(range(1, 33))
        self._popen, self._addresses, self._scratch = popen, addresses, scratch
        self._common = {
            "coordinator": f"tcp://{addresses['hub']}:{port}", "secret": "an example",
            "key": key.hex(), "public": SigningKey(key).public.hex(),
        }  # fmt: skip
        self._all: list[Process] = []
        self._start("hub", "hub", "hub").next()
        self.trainer, east, west = (
            self._start(site, "relay" if site != "trainer" else site, site) for site in ("trainer", "east", "west")
        )
        ids = {process.name: process.next()["id"] for process in (self.trainer, east, west)}
        east.tell(ids[self.trainer.name])
        west.tell(ids[east.name])
        self._relays = {"east": ids[east.name], "west": ids[west.name]}
        self.workers: dict[str, Process] = {}

    def _start(self, site: str, role: str, name: str) -> Process:
        """A process; what it keeps is kept by its name."""
        kept = self._scratch / f"{role}-{name}"
        kept.mkdir(exist_ok=True)
        mine = {"name": name, "listen": f"{self._addresses[site]}:0", "scratch": str(kept)}
        process = Process(self._popen, __file__, site, role, {**self._common, **mine})
        self._all.append(process)
        return process

    def worker(self, name: str) -> None:
        """Comes, or comes back, and follows its region's relay."""
        site = name.split("-")[0]
        process = self.workers[name] = self._start(site, "worker", name)
        version = process.next()["begins_at"]
        process.tell(self._relays[site])
        print(f"{name} begins at version {version}", flush=True)

    def step(self, version: int) -> dict[str, Any]:
        """One version, at all workers that are there."""
        self.trainer.tell("step")
        told = version_of(self.trainer, version)
        found = {name: version_of(process, version) for name, process in self.workers.items()}
        equal = all(answer["digest"] == told["digest"] for answer in found.values())
        pauses = " ".join(f"{answer['pause_ms']:.1f}" for answer in found.values())
        bits = 8 * told["bytes"] / max(1, told["changed"])
        print(
            f"version {version}: {told['bytes']} bytes for {told['changed']} changes ({bits:.1f} bits each), "
            f"{told['dense'] / told['bytes']:.0f} x below dense; {len(found)} workers, pauses {pauses} ms, "
            f"{told['digest']} {'everywhere' if equal else 'NOT EVERYWHERE'}",
            flush=True,
        )
        if not equal:
            raise SystemExit("a worker has other bytes")
        return told

    def close(self) -> None:
        """All of them end."""
        for process in reversed(self._all):
            process.end()


def main() -> None:
    """Twelve versions; one worker is killed and misses three, one comes after eight."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        take_part(options.role[0], json.loads(options.role[1]))
        return
    with tempfile.TemporaryDirectory() as scratch, stage(SITES, 80, 100, options.local) as (popen, addresses, port):
        show = Show(popen, addresses, Path(scratch), port)
        for name in ("east-1", "east-2", "west-1"):
            show.worker(name)
        sent = dense = 0
        for version in range(1, options.steps + 1):
            told = show.step(version)
            sent, dense = sent + told["bytes"], dense + told["dense"]
            if version == options.steps // 4:
                show.workers.pop("east-2").kill()
                print("east-2 is killed", flush=True)
            elif version == options.steps // 2:
                show.worker("east-2")
            elif version == options.steps * 2 // 3:
                show.worker("west-2")
        show.close()
    print(f"done: {options.steps} versions in {sent} bytes, {dense / sent:.0f} x below dense", flush=True)


if __name__ == "__main__":
    main()
