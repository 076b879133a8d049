"""A receiver in a process of its own: `weights_peer.py ADDRESS SECRET SOURCE SHADOW PUBKEY`, to be killed at any time.

Commits whatever comes into a FileShadow and prints, for each commit, the version and a digest of all weights; before
that those it begins with. Ends with its standard input.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from weights_model import SCHEMA, digest_of, tensors, weights

import pccl
from pccl.weights import FileShadow, Receiver, base


def main() -> None:
    address, secret, source, path, pubkey = sys.argv[1:]
    shadow = FileShadow(Path(path), SCHEMA)
    if shadow.at is None:
        base.fill(shadow, tensors(weights()))

    def say() -> None:
        print(shadow.at.version, digest_of({t.name: shadow.tensor(t.name) for t in SCHEMA.tensors}), flush=True)

    say()
    with pccl.connect(address, secret=secret, listen="127.0.0.1:0", timeout=60.0, transport="tcp", enter=False) as comm:
        with Receiver(comm, shadow, upstream=[bytes.fromhex(source)], pubkey=bytes.fromhex(pubkey)) as rx:
            threading.Thread(target=lambda: (sys.stdin.read(), rx.close()), daemon=True).start()
            for update in rx.updates():
                with update.commit():
                    pass
                say()


if __name__ == "__main__":
    main()
