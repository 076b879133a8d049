"""A source in a process of its own: `transfer_peer.py ADDRESS SECRET BYTES SECONDS`; ends with its standard input.

Offers BYTES of known content as "a", sends them no faster than in SECONDS, and prints its id when it has offered.
"""

from __future__ import annotations

import sys

import numpy as np

import pccl


def main() -> None:
    address, secret, nbytes, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    data = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
    with pccl.connect(address, secret=secret, listen="127.0.0.1:0", timeout=60.0, transport="tcp") as comm:
        comm.transfers.limit("normal", int(nbytes / seconds))
        offer = comm.transfers.offer("a", data, chunk_bytes=262144)
        print(comm.peer_id.hex(), flush=True)
        sys.stdin.readline()
        offer.withdraw()


if __name__ == "__main__":
    main()
