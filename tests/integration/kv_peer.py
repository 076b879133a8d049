"""A pool in a process of its own: `kv_peer.py ADDRESS SECRET GROUP`; ends with its standard input.

Prints its id, then obeys lines: "send TICKET LAYERS" opens a send of blocks 0.. and announces so many layers, and
finishes if these are all; "recv BLOCKS SECONDS" prints a ticket; each prints the end of what it began.
"""

from __future__ import annotations

import sys
import threading

from integration import kv_pools

import pccl
import pccl.kv as kv

BLOCKS = 64


def report(side: kv.Send | kv.Receive) -> None:
    """How it ended."""
    try:
        side.wait()
        print("end committed", flush=True)
    except kv.ends.EndError as error:
        print(f"end {side.poll().value} {error.cause}", flush=True)


def obey(pool: kv.Pool, words: list[str]) -> kv.Send | kv.Receive:
    if words[0] == "recv":
        receive = pool.prep_recv("r", list(range(int(words[1]))), deadline=float(words[2]))
        print(receive.ticket.hex(), flush=True)
        return receive
    ticket = kv.ticket.Ticket.decode(bytes.fromhex(words[1]))
    send = pool.open_send(bytes.fromhex(words[1]), list(range(ticket.wanted[0].blocks)))
    for layer in kv_pools.LAYERS[: int(words[2])]:
        send.layer_ready(layer)
    if int(words[2]) == len(kv_pools.LAYERS):
        send.finish()
    print("opened", flush=True)
    return send


def main() -> None:
    address, secret, group = sys.argv[1:4]
    layout = kv_pools.layout()
    options = {"secret": secret, "listen": "127.0.0.1:0", "timeout": 60.0, "transport": "tcp", "group": int(group)}
    with pccl.connect(address, **options) as comm:  # type: ignore[arg-type]
        with kv.register(comm, layout, kv_pools.buffers(layout, BLOCKS, 1)) as pool:
            print(comm.peer_id.hex(), flush=True)
            for line in sys.stdin:
                side = obey(pool, line.split())
                threading.Thread(target=report, args=(side,), daemon=True).start()


if __name__ == "__main__":
    main()
