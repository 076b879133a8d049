"""A relay in a process of its own: `weights_relay.py ADDRESS SECRET SOURCE LOG GROUP`, to be killed at any time.

Prints its id, then obeys lines on its standard input, with which it ends: "limit N" caps what it sends at so many bytes
per second and is answered.
"""

from __future__ import annotations

import sys

from weights_model import SCHEMA, loaded, weights

import pccl
from pccl.weights import DeltaLog, Relay


def main() -> None:
    address, secret, source, log, group = sys.argv[1:]
    options = {"secret": secret, "listen": "127.0.0.1:0", "timeout": 60.0, "transport": "tcp", "group": int(group)}
    with pccl.connect(address, **options) as comm:
        upstream = [bytes.fromhex(source)]
        with Relay(comm, SCHEMA, base=loaded(weights()), log=DeltaLog(log), upstream=upstream):
            print(comm.peer_id.hex(), flush=True)
            for line in sys.stdin:
                comm.transfers.limit("normal", int(line.split()[1]))
                print("limited", flush=True)


if __name__ == "__main__":
    main()
