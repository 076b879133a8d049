"""A server of the double of SGLang in a process of its own; ends with its standard input.

Without arguments: P, which prints its address and then takes lines "RID ROOM": "good" is computed, of any other half.
With an address: D of a request of room 9.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from integration.sglang_servers import backend

PROMPT = [7 * at % 101 for at in range(30)]


def prefill(lines: list[str], over: threading.Event) -> None:
    chosen = backend()
    from sglang.srt.engine import Prefill
    from sglang.srt.server_args import ServerArgs

    p = Prefill(chosen, ServerArgs(disaggregation_bootstrap_port=0))
    print(p.address, flush=True)
    requests: list[Any] = []
    while not over.wait(0.005):
        while lines:
            rid, room = lines.pop(0).split()
            requests.append(p.add(rid, PROMPT, int(room)))
        p.step(compute=all(request.rid == "good" or request.done < 16 for request in requests))


def decode(address: str, over: threading.Event) -> None:
    chosen = backend()
    from sglang.srt.engine import Decode
    from sglang.srt.server_args import ServerArgs

    d = Decode(chosen, ServerArgs())
    d.add("r", PROMPT, address, 9)
    while not over.wait(0.005):
        d.step()


def main() -> None:
    lines: list[str] = []
    over = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            lines.append(line)
        over.set()

    threading.Thread(target=read, daemon=True).start()
    if len(sys.argv) > 1:
        decode(sys.argv[1], over)
    else:
        prefill(lines, over)


if __name__ == "__main__":
    main()
