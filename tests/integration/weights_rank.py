"""A trainer rank in a process of its own: `weights_rank.py ADDRESS SECRET LEAD RANK GROUP`, to be killed at any time.

Prints its id. For each line "step N" on its standard input it takes the steps of weights_model that it has not taken,
publishes its shards, and prints how that ended: the version, or "failed" and why. "limit N" caps what it sends at so
many bytes per second, and is answered. Ends with its input.
"""

from __future__ import annotations

import sys

from weights_model import SCHEMA, shards_of, step, tensors, weights

import pccl
from pccl.weights import ShardPublisher


def main() -> None:
    address, secret, lead, rank, group = sys.argv[1:]
    options = {"secret": secret, "listen": "127.0.0.1:0", "timeout": 60.0, "transport": "tcp", "group": int(group)}
    state, taken = weights(), 0
    with pccl.connect(address, **options) as comm, ShardPublisher(comm, SCHEMA, lead=bytes.fromhex(lead)) as pub:
        print(comm.peer_id.hex(), flush=True)
        for line in sys.stdin:
            what, wanted = line.split()[0], int(line.split()[1])
            if what == "limit":
                comm.transfers.limit("normal", wanted)
                print("limited", flush=True)
                continue
            while taken < wanted:
                taken += 1
                step(state, taken)
            ticket = pub.publish(shards_of(tensors(state), int(rank)))
            try:
                ticket.wait("durable", 60.0)
                print(ticket.version, flush=True)
            except pccl.PcclError as error:
                print("failed", error, flush=True)


if __name__ == "__main__":
    main()
