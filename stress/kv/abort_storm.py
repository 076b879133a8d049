"""`python -m stress.kv.abort_storm`: many transfers at once, half of them ended by either side at any moment.

Every transfer must end once on each side, in time and alike; what committed must hold the bytes that were sent, what
did not must not be written to any more: its blocks are filled with a mark, which must be there when they are used
again. At the end nothing may be left: no block in use, no transfer, no ask and no region. Exit code 1: it was not so.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import click
import numpy as np

import pccl
import pccl.kv as kv
from pccl.coordinator.server import Coordinator
from pccl.kv.slots import AHEAD

LAYERS = ("L0", "L1", "L2", "L3")
BLOCK_BYTES = 8192
BLOCKS = 8  # of a transfer
MARK = 0xA5
SLACK_S = 2.0
TERMINAL = (kv.State.COMMITTED, kv.State.ABORTED, kv.State.EXPIRED, kv.State.FAILED)


@dataclass
class Tally:
    """What came of it. `wrong`: in words."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0


class Storm:
    """Two pools of one process, with a stretch of D's blocks for each thread."""

    def __init__(self, d: pccl.Communicator, p: pccl.Communicator, threads: int, deadline_s: float) -> None:
        self.threads, self.deadline_s = threads, deadline_s
        count = threads * BLOCKS
        chance = np.random.default_rng(1)
        self.source = [chance.integers(0, 256, (count, BLOCK_BYTES), np.uint8) for _ in LAYERS]
        self.target = [np.full((count, BLOCK_BYTES), MARK, np.uint8) for _ in LAYERS]
        group = kv.Group(name="g", layers=LAYERS, bytes_per_block_layer=BLOCK_BYTES, block_tokens=16)
        layout = kv.Layout(model_id="storm", groups=(group,))
        self.d = kv.register(d, layout, {"g": self.target}, name="storm")
        self.p = kv.register(p, layout, {"g": self.source}, name="storm")
        self.p_id = p.peer_id
        self.engines = [comm.transfers._host.engine for comm in (d, p)]
        self.tally = Tally()
        self._lock = threading.Lock()

    def run(self, transfers: int, aborted: float) -> Tally:
        """So many transfers, a share of which somebody ends."""

        def body(number: int) -> None:
            chance = random.Random(number)
            for one in range(number, transfers, self.threads):
                try:
                    self._transfer(chance, number, aborted)
                except Exception as error:  # noqa: BLE001 - one that was not expected is what is looked for
                    self._wrong(f"transfer {one}: {error!r}")

        workers = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(self.threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._leftovers()
        return self.tally

    def close(self) -> None:
        """The pools."""
        self.d.close()
        self.p.close()

    def _wrong(self, text: str) -> None:
        with self._lock:
            self.tally.wrong.append(text)

    def _transfer(self, chance: random.Random, number: int, aborted: float) -> None:
        mine = list(range(number * BLOCKS, (number + 1) * BLOCKS))
        chance.shuffle(mine)
        theirs = chance.sample(range(self.threads * BLOCKS), BLOCKS)
        for layer, memory in enumerate(self.target):
            if not (memory[mine] == MARK).all():
                self._wrong(f"thread {number}: layer {layer} was written to after the end")
        began = time.monotonic()
        receive = self.d.prep_recv("storm", mine, deadline=self.deadline_s)
        stop_at = chance.randrange(len(LAYERS) + 2) if chance.random() < aborted else None
        by_p = chance.random() < 0.5
        if stop_at == 0 and not by_p:
            receive.cancel("storm")
        send = self.p.open_send(receive.ticket, theirs)
        for step, layer in enumerate(LAYERS, 1):
            send.layer_ready(layer)
            if step == stop_at:
                send.abort("storm") if by_p else receive.cancel("storm")
        send.finish()
        if stop_at == len(LAYERS) + 1 or (stop_at == 0 and by_p):
            send.abort("storm")
            receive.cancel("storm")
        self._ended(receive, send, mine, theirs, began)

    def _ended(self, receive: kv.Receive, send: kv.Send, mine: list[int], theirs: list[int], began: float) -> None:
        for side in (receive, send):
            try:
                side.wait(self.deadline_s + SLACK_S)
            except kv.EndError:
                continue  # its state says which
        ended = receive.poll(), send.poll()
        taken = time.monotonic() - began
        right = [np.array_equal(to[mine], of[theirs]) for to, of in zip(self.target, self.source, strict=True)]
        with self._lock:
            self.tally.ends[ended[0].value, ended[1].value] += 1
            self.tally.longest_s = max(self.tally.longest_s, taken)
            if not all(state in TERMINAL for state in ended) or taken > self.deadline_s + SLACK_S:
                self.tally.wrong.append(f"{ended} after {taken:.1f} s")
            if ended[0] is kv.State.COMMITTED and not all(right):
                self.tally.wrong.append("what committed is not what was sent")
            if ended[1] is kv.State.COMMITTED and ended[0] is not kv.State.COMMITTED:
                self.tally.wrong.append(f"the sender committed, the receiver did not: {ended}")
        for memory in self.target:
            memory[mine] = MARK

    def _leftovers(self) -> None:
        for pool in (self.d, self.p):
            exchange = pool._exchange
            left = (pool.busy("g").size, len(exchange.inbound), len(exchange.outbound), pool._ledger.transfers)
            if any(left):
                self._wrong(f"left at the end: {left}")
        for memory in self.target:
            if not (memory == MARK).all():
                self._wrong("blocks were written to after the end")
        deadline = time.monotonic() + SLACK_S
        while any(engine.stats().transfers_pending > AHEAD + 1 for engine in self.engines):  # a bell, and slots
            if time.monotonic() > deadline:
                self._wrong(f"asks are left: {[engine.stats().transfers_pending for engine in self.engines]}")
                return
            time.sleep(0.01)


@click.command()
@click.option("--transfers", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=32, show_default=True, help="Transfers at a time.")
@click.option("--aborted", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--deadline", "deadline_s", type=click.FloatRange(0.1), default=20.0, show_default=True)
def main(transfers: int, threads: int, aborted: float, deadline_s: float) -> None:
    """Run the storm."""
    with Coordinator(min_peers=1, form_peers=2, secret="storm") as coordinator:
        comms: list[pccl.Communicator] = []

        def connect() -> None:
            comms.append(pccl.connect(coordinator.address, secret="storm", listen="127.0.0.1:0", transport="tcp"))

        joining = [threading.Thread(target=connect) for _ in range(2)]
        for thread in joining:
            thread.start()
        for thread in joining:
            thread.join()
        with comms[0], comms[1]:
            storm = Storm(comms[0], comms[1], threads, deadline_s)
            began = time.monotonic()
            tally = storm.run(transfers, aborted)
            seconds = time.monotonic() - began
            storm.close()
    for ends, count in sorted(tally.ends.items()):
        click.echo(f"{count:6}  receiver {ends[0]}, sender {ends[1]}")
    click.echo(f"{transfers} transfers in {seconds:.1f} s, the longest {tally.longest_s:.2f} s")
    for text in tally.wrong[:20]:
        click.echo(f"WRONG: {text}")
    sys.exit(int(bool(tally.wrong)))


if __name__ == "__main__":
    main(prog_name="python -m stress.kv.abort_storm")
