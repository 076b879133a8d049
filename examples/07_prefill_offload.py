"""Prefill in one datacenter, decode in another: KV caches over a WAN, layer by layer, to the last bit.

A small transformer is prefilled in the east while its cache streams to the west, which decodes. Then a user goes away
in the middle of a request, and a prefill machine freezes: the west gives up at its deadline and computes the prompt,
and neither side keeps a block.

    python examples/07_prefill_offload.py             80 ms and 200 Mbit/s apart, if this host lets us (stress/wan)
    python examples/07_prefill_offload.py --local     without a network between them
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stage import WAIT_S, Process, say, stage
from torch import Tensor, nn

import pccl
import pccl.kv as kv
from pccl.coordinator.server import Coordinator

SITES = ("hub", "west", "east", "east2")
LAYERS, HEADS, HEAD, VOCABULARY = 8, 8, 64, 512
BLOCKS, BLOCK_TOKENS = 256, 16
#: The deadline was first, or the run's own discovery of the frozen peer.
GIVEN_UP = ("TransferExpired (deadline)", "TransferFailed (lost)")
NAMES = tuple(f"L{layer}" for layer in range(LAYERS))


# -- the model, and its paged cache --


class Cache:
    """Keys and values of all layers in blocks, as engines keep them. `buffers`: [blocks, 2, tokens, heads, head]."""

    def __init__(self) -> None:
        shape = (BLOCKS, 2, BLOCK_TOKENS, HEADS, HEAD)
        self.buffers = [torch.zeros(shape, dtype=torch.bfloat16) for _ in NAMES]
        self._free = list(np.random.default_rng().permutation(BLOCKS))

    def layout(self) -> kv.Layout:
        """What both sides must have alike."""
        slab = 2 * BLOCK_TOKENS * HEADS * HEAD * 2
        heads = (0, HEADS, HEADS)
        full = kv.Group(
            name="full", layers=NAMES, bytes_per_block_layer=slab, block_tokens=BLOCK_TOKENS, heads=heads, planes=2
        )
        return kv.Layout(model_id="example/1", groups=(full,))

    def take(self, tokens: int) -> list[int]:
        """Blocks for so many tokens."""
        count = -(-tokens // BLOCK_TOKENS)
        taken, self._free = self._free[:count], self._free[count:]
        return [int(block) for block in taken]

    def give_back(self, blocks: list[int]) -> None:
        """They hold nothing of use any more."""
        self._free += blocks

    def free(self) -> int:
        """Blocks that nobody has."""
        return len(self._free)

    def write(self, layer: int, blocks: list[int], start: int, keys_values: Tensor) -> None:
        """[2, tokens, heads, head] from token `start` on."""
        places = torch.arange(start, start + keys_values.shape[1])
        rows = torch.tensor(blocks)[places // BLOCK_TOKENS]
        self.buffers[layer][rows, :, places % BLOCK_TOKENS] = keys_values.transpose(0, 1).bfloat16()

    def read(self, layer: int, blocks: list[int], tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values, [heads, tokens, head], of the first tokens."""
        both = self.buffers[layer][torch.tensor(blocks)].transpose(0, 1).flatten(1, 2)[:, :tokens]
        keys, values = both.float().transpose(1, 2)
        return keys, values


class Model(nn.Module):
    """A transformer as small as one can be that is one; the same weights on every machine."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = HEADS * HEAD
        self.embed = nn.Embedding(VOCABULARY, width)
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width) for _ in NAMES)
        self.join = nn.ModuleList(nn.Linear(width, width) for _ in NAMES)
        self.think = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in NAMES
        )
        self.head = nn.Linear(width, VOCABULARY)

    @torch.no_grad()
    def run(self, tokens: Tensor, start: int, cache: Cache, blocks: list[int], done: Callable[[int], None]) -> Tensor:
        """Logits after the last of these tokens, whose places begin at `start`; `done` is told of each layer."""
        x = self.embed(tokens)
        count, end = tokens.shape[0], start + tokens.shape[0]
        later = torch.arange(end)[None] > torch.arange(start, end)[:, None]
        for layer in range(LAYERS):
            query, key, value = self.attend[layer](normed(x)).view(count, 3, HEADS, HEAD).unbind(1)
            cache.write(layer, blocks, start, torch.stack((key, value)))
            done(layer)
            keys, values = cache.read(layer, blocks, end)
            scores = (query.transpose(0, 1) @ keys.transpose(1, 2) / HEAD**0.5).masked_fill(later, float("-inf"))
            x = x + self.join[layer]((scores.softmax(-1) @ values).transpose(0, 1).flatten(1))
            x = x + self.think[layer](normed(x))
        logits: Tensor = self.head(normed(x[-1]))
        return logits


def normed(x: Tensor) -> Tensor:
    """Without weights."""
    return nn.functional.layer_norm(x, x.shape[-1:])


def prompt(request: dict[str, Any]) -> Tensor:
    """The same on both sides."""
    return torch.randint(0, VOCABULARY, (request["tokens"],), generator=torch.Generator().manual_seed(request["seed"]))


def nothing(layer: int) -> None:
    """Nobody is told."""


# -- east: prefill --


def east(comm: pccl.Communicator, options: dict[str, Any]) -> None:
    """A prefill for each line of input; every layer leaves when it is there."""
    model, cache = Model(), Cache()
    with kv.register(comm, cache.layout(), {"full": cache.buffers}) as pool:
        say(ready=True, pid=os.getpid())
        for line in sys.stdin:
            request = json.loads(line)
            blocks = cache.take(request["tokens"])
            send = pool.open_send(bytes.fromhex(request["ticket"]), blocks)
            began = time.perf_counter()
            logits = model.run(
                prompt(request), 0, cache, blocks, lambda layer, send=send: send.layer_ready(NAMES[layer])
            )
            prefill_s = time.perf_counter() - began
            send.finish(first_token=int(logits.argmax()), meta=logits.numpy().tobytes())
            try:
                sent = send.wait(WAIT_S)
                outcome, nbytes = "committed", sent.nbytes
            except (kv.TransferAborted, kv.TransferExpired, kv.TransferFailed) as error:
                outcome, nbytes = f"{type(error).__name__} ({error.cause})", 0
            cache.give_back(blocks)
            say(request=request["name"], outcome=outcome, prefill_s=prefill_s, nbytes=nbytes, free=cache.free())


# -- west: decode --


class Decoder:
    """Receives the cache of a prompt, and goes on with it; what it cannot get it computes."""

    def __init__(self, pool: kv.Pool, cache: Cache) -> None:
        self._pool, self._cache, self._model = pool, cache, Model()

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request, and what came of it."""
        blocks = self._cache.take(request["tokens"] + 1)
        wanted = blocks[: -(-request["tokens"] // BLOCK_TOKENS)]
        began = time.perf_counter()
        receive = self._pool.prep_recv(request["name"], wanted, deadline=request["deadline_s"], priority="critical")
        say(ticket=receive.ticket.hex())
        try:
            receive.wait_layer(NAMES[1])
            say(landed=NAMES[1])
            if request["abort"]:
                receive.cancel("the user has gone")
            received = receive.wait()
            result = self._decode(request, blocks, received, time.perf_counter() - began)
        except kv.TransferAborted as error:
            result = {"outcome": f"aborted ({error.cause})"}
        except (kv.TransferExpired, kv.TransferFailed) as error:
            late_s = time.perf_counter() - began
            first_s, _ = self._local(request, blocks)
            result = {
                "outcome": f"{type(error).__name__} ({error.cause})",
                "after_s": late_s,
                "first_s": late_s + first_s,
            }
        self._cache.give_back(blocks)
        return result | {"free": self._cache.free(), "busy": int(self._pool.busy("full").size)}

    def _local(self, request: dict[str, Any], blocks: list[int]) -> tuple[float, Tensor]:
        """The prompt computed here: seconds, and its logits."""
        began = time.perf_counter()
        logits = self._model.run(prompt(request), 0, self._cache, blocks, nothing)
        return time.perf_counter() - began, logits

    def _decode(
        self, request: dict[str, Any], blocks: list[int], received: kv.Received, first_s: float
    ) -> dict[str, Any]:
        """One more token by the received cache, and by one that is computed here: bit by bit the same."""
        token = torch.tensor([int.from_bytes(received.meta[:8], "little", signed=True)])
        first = torch.frombuffer(bytearray(received.meta[8:]), dtype=torch.float32)
        far = self._model.run(token, request["tokens"], self._cache, blocks, nothing)
        own = self._cache.take(request["tokens"] + 1)
        local_s, near_first = self._local(request, own)
        near = self._model.run(token, request["tokens"], self._cache, own, nothing)
        self._cache.give_back(own)
        equal = torch.equal(first, near_first) and torch.equal(far, near)
        return {
            "outcome": "committed",
            "first_s": first_s,
            "local_s": local_s,
            "equal": equal,
            "nbytes": received.nbytes,
        }


def west(comm: pccl.Communicator, options: dict[str, Any]) -> None:
    """A request for each line of input."""
    cache = Cache()
    with kv.register(comm, cache.layout(), {"full": cache.buffers}) as pool:
        decoder = Decoder(pool, cache)
        say(ready=True, pid=os.getpid())
        for line in sys.stdin:
            say(**decoder.serve(json.loads(line)))


def hub(options: dict[str, Any]) -> None:
    """The coordinator; no cache passes through it."""
    with Coordinator(bind=options["coordinator"], secret=options["secret"], min_peers=3):
        say(ready=True)
        sys.stdin.read()


def take_part(role: str, options: dict[str, Any]) -> None:
    """What runs at a site, in a process of its own; it ends with its input."""
    torch.set_num_threads(1)
    if role == "hub":
        hub(options)
        return
    settings = {"secret": options["secret"], "listen": options["listen"], "timeout": WAIT_S, "transport": "tcp"}
    with pccl.connect(options["coordinator"], **settings) as comm:
        {"west": west, "east": east}[role](comm, options)


# -- what happens --


class Show:
    """A router, as short as can be: it carries tickets and prompts from the west to the east."""

    def __init__(self, popen: Any, addresses: dict[str, str], port: int) -> None:
        common = {"coordinator": f"tcp://{addresses['hub']}:{port}", "secret": "an example"}
        roles = {"hub": "hub", "west": "west", "east": "east", "east2": "east"}
        self.at: dict[str, Process] = {}
        for site, role in roles.items():
            mine = {"name": site, "listen": f"{addresses[site]}:0"}
            self.at[site] = Process(popen, __file__, site, role, {**common, **mine})
            if site == "hub":
                self.at[site].next()
        self._pids = {site: self.at[site].next()["pid"] for site in SITES[1:]}
        self._seed = 0

    def request(
        self,
        name: str,
        tokens: int,
        site: str = "east",
        deadline_s: float = 30.0,
        abort: bool = False,
        freeze: bool = False,
    ) -> dict[str, Any]:
        """Offloads the prefill of one prompt; gives what the west, and (but for a frozen one) the east say of it."""
        self._seed += 1
        facts = {"name": name, "tokens": tokens, "seed": self._seed, "deadline_s": deadline_s, "abort": abort}
        self.at["west"].tell(json.dumps(facts))
        ticket = self.at["west"].next()["ticket"]
        self.at[site].tell(json.dumps({**facts, "ticket": ticket}))
        self.at["west"].until(lambda news: "landed" in news)
        if freeze:
            os.kill(self._pids[site], signal.SIGSTOP)
        result = self.at["west"].until(lambda news: "outcome" in news)
        if freeze:
            os.kill(self._pids[site], signal.SIGCONT)
        return {**result, "there": self.at[site].next()}

    def close(self) -> None:
        """All of them end."""
        for process in reversed(self.at.values()):
            process.end()


def play(show: Show, tokens: int, requests: int) -> None:
    """Some that go well, one that nobody wants any more, one whose prefill freezes, and one more."""
    for number in range(requests):
        told = show.request(f"request {number}", tokens)
        if told["outcome"] != "committed" or not told["equal"]:
            raise SystemExit(f"request {number}: {told}")
        prefill_s = told["there"]["prefill_s"]
        print(
            f"request {number}: {tokens} tokens, {told['nbytes'] / 2**20:.1f} MiB of cache; first token after "
            f"{told['first_s']:.2f} s ({prefill_s:.2f} s of prefill, {told['first_s'] - prefill_s:.2f} s beside it), "
            f"local prefill {told['local_s']:.2f} s; logits equal to the last bit",
            flush=True,
        )
    told = show.request("aborted", tokens, abort=True)
    print(f"one whose user goes: here {told['outcome']}, there {told['there']['outcome']}", flush=True)
    check(told, ("aborted (the user has gone)",), "TransferAborted (the user has gone)")
    told = show.request("frozen", tokens, site="east2", deadline_s=5.0, freeze=True)
    print(
        f"one whose prefill freezes: here {told['outcome']} after {told['after_s']:.2f} s, first token after "
        f"{told['first_s']:.2f} s by local prefill; there {told['there']['outcome']}",
        flush=True,
    )
    check(told, GIVEN_UP, None)
    told = show.request("last", tokens)
    check(told, ("committed",), "committed")
    print("done: no block is held on either side", flush=True)


def check(told: dict[str, Any], here: tuple[str, ...], there: str | None) -> None:
    """It ended as it should, on both sides, and all blocks are free."""
    fits = told["outcome"] in here and (there is None or told["there"]["outcome"] == there)
    if not fits or told["busy"] or told["free"] != BLOCKS or told["there"]["free"] != BLOCKS:
        raise SystemExit(f"not as it should be: {told}")


def main() -> None:
    """Plays it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="of a prompt")
    parser.add_argument("--requests", type=int, default=3, help="that go well")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        take_part(options.role[0], json.loads(options.role[1]))
        return
    with stage(SITES, 80, 200, options.local) as (popen, addresses, port):
        show = Show(popen, addresses, port)
        play(show, options.tokens, options.requests)
        show.close()


if __name__ == "__main__":
    main()
